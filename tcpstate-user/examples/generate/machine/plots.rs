//! What may become of a connection.

use tcpstate_common::state::TcpState::{
    self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv,
    SynSent, TimeWait,
};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

/// Why a state changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Its process did it.
    Process,
    /// A segment came.
    Segment,
    /// This error.
    Error(i32),
}

/// Something happens.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Change(TcpState, TcpState, By),
    /// A minisocket takes over, in this state.
    Born(TcpState),
    /// The minisocket in FIN_WAIT2 gets the FIN.
    Restarted,
    TimedOut,
    /// It ends before its time, by the function that has this return address.
    Ended(u64),
}

/// So many microseconds later, around that, at this end.
pub type Beat = (u64, End, Act);

/// The functions that end minisockets, as `/proc/kallsyms` has them.
pub const SYMBOLS: &str = "\
    ffffffff82000000 T inet_twsk_hashdance_schedule\n\
    ffffffff82001000 t __inet_check_established\n\
    ffffffff82002000 T tcp_v4_rcv\n\
    ffffffff82003000 T tcp_timewait_state_process\n\
    ffffffff82004000 T tcp_abort\n\
    ffffffff82005000 t end\n";
const CONNECT: u64 = 0xffff_ffff_8200_1010;
const RST: u64 = 0xffff_ffff_8200_3010;

const MS: u64 = 1000;
const S: u64 = 1_000_000;

const fn client(after: u64, old: TcpState, new: TcpState, by: By) -> Beat {
    (after, End::Client, Act::Change(old, new, by))
}

const fn server(after: u64, old: TcpState, new: TcpState, by: By) -> Beat {
    (after, End::Server, Act::Change(old, new, by))
}

const CONNECTS: Beat = client(0, Close, SynSent, By::Process);
const COMES: Beat = server(60, Listen, SynRecv, By::Segment);
const IS_THERE: Beat = client(40, SynSent, Established, By::Segment);
const IS_ACCEPTED: Beat = server(40, SynRecv, Established, By::Segment);

/// The client closes first, and its TIME_WAIT lasts as long as it should.
const BY_CLIENT: &[Beat] = &[
    CONNECTS,
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    client(5 * MS, Established, FinWait1, By::Process),
    server(50, Established, CloseWait, By::Segment),
    client(30, FinWait1, FinWait2, By::Segment),
    server(300, CloseWait, LastAck, By::Process),
    (50, End::Client, Act::Born(TimeWait)),
    client(5, FinWait2, Close, By::Segment),
    server(50, LastAck, Close, By::Segment),
    (60 * S, End::Client, Act::TimedOut),
];

/// The server closes first.
const BY_SERVER: &[Beat] = &[
    CONNECTS,
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    server(20 * MS, Established, FinWait1, By::Process),
    client(50, Established, CloseWait, By::Segment),
    server(30, FinWait1, FinWait2, By::Segment),
    client(2 * MS, CloseWait, LastAck, By::Process),
    (50, End::Server, Act::Born(TimeWait)),
    server(5, FinWait2, Close, By::Segment),
    client(50, LastAck, Close, By::Segment),
    (60 * S, End::Server, Act::TimedOut),
];

/// connect() takes the port of a TIME_WAIT over.
const TAKEN_OVER: &[Beat] = &[
    CONNECTS,
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    client(5 * MS, Established, FinWait1, By::Process),
    server(50, Established, CloseWait, By::Segment),
    client(30, FinWait1, FinWait2, By::Segment),
    server(300, CloseWait, LastAck, By::Process),
    (50, End::Client, Act::Born(TimeWait)),
    client(5, FinWait2, Close, By::Segment),
    server(50, LastAck, Close, By::Segment),
    (2 * S, End::Client, Act::Ended(CONNECT)),
    client(30, Close, SynSent, By::Process),
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    // With unread data: a RST.
    server(10 * MS, Established, Close, By::Process),
    client(50, Established, Close, By::Error(libc::ECONNRESET)),
];

/// A half-close: the answer comes after the question is over, and the orphan waits for the FIN in a minisocket.
const HALF_CLOSED: &[Beat] = &[
    CONNECTS,
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    client(MS, Established, FinWait1, By::Process),
    server(50, Established, CloseWait, By::Segment),
    (30, End::Client, Act::Born(FinWait2)),
    client(5, FinWait1, Close, By::Segment),
    server(500 * MS, CloseWait, LastAck, By::Process),
    (40, End::Client, Act::Restarted),
    server(50, LastAck, Close, By::Segment),
    (5 * S, End::Client, Act::Ended(RST)),
];

/// Both close at the same time.
const CROSSED: &[Beat] = &[
    CONNECTS,
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    client(50 * MS, Established, FinWait1, By::Process),
    server(5, Established, FinWait1, By::Process),
    client(40, FinWait1, Closing, By::Segment),
    server(5, FinWait1, Closing, By::Segment),
    (40, End::Client, Act::Born(TimeWait)),
    client(5, Closing, Close, By::Segment),
    (5, End::Server, Act::Born(TimeWait)),
    server(5, Closing, Close, By::Segment),
    (60 * S, End::Client, Act::TimedOut),
    (MS, End::Server, Act::TimedOut),
];

/// The client is gone with a RST.
const RESET: &[Beat] = &[
    CONNECTS,
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    client(100 * MS, Established, Close, By::Process),
    server(50, Established, Close, By::Error(libc::ECONNRESET)),
];

/// Kept open for long; then the server closes, and the client takes its time.
const KEPT: &[Beat] = &[
    CONNECTS,
    COMES,
    IS_THERE,
    IS_ACCEPTED,
    server(75 * S, Established, FinWait1, By::Process),
    client(50, Established, CloseWait, By::Segment),
    server(30, FinWait1, FinWait2, By::Segment),
    client(5 * S, CloseWait, LastAck, By::Process),
    (50, End::Server, Act::Born(TimeWait)),
    server(5, FinWait2, Close, By::Segment),
    client(50, LastAck, Close, By::Segment),
    (60 * S, End::Server, Act::TimedOut),
];

const REFUSED: &[Beat] = &[
    CONNECTS,
    client(80, SynSent, Close, By::Error(libc::ECONNREFUSED)),
];

const UNANSWERED: &[Beat] = &[
    CONNECTS,
    client(30 * S, SynSent, Close, By::Error(libc::ETIMEDOUT)),
];

/// How many of a hundred end like that.
pub const PLOTS: [(u64, &[Beat]); 9] = [
    (38, BY_CLIENT),
    (32, BY_SERVER),
    (8, TAKEN_OVER),
    (5, HALF_CLOSED),
    (1, CROSSED),
    (6, RESET),
    (6, KEPT),
    (3, REFUSED),
    (1, UNANSWERED),
];

const _: () = {
    let (mut sum, mut plot) = (0, 0);
    while plot < PLOTS.len() {
        sum += PLOTS[plot].0;
        plot += 1;
    }
    assert!(sum == 100);
};
