"""Asks DuckDB about the tables of an export.

Usage: query.py FOLDER SQL. The tables are `connections` and `transitions`. Prints the rows as JSON.
"""

import json
import sys

import duckdb

folder, question = sys.argv[1:]
database = duckdb.connect()
for table in ("connections", "transitions"):
    file = f"{folder}/{table}.parquet".replace("'", "''")
    database.execute(f"create view {table} as select * from read_parquet('{file}')")
json.dump(database.execute(question).fetchall(), sys.stdout, default=str)
