"""Writes a first corpus for a fuzz target: ``seeds.py codec|link|fabric DIRECTORY``."""

import random
import sys
from pathlib import Path

FRAMES = [
    b'{"type":"submit","seq":1,"payload":{"version":"1.0","id":"550e8400-e29b-41d4-a716-446655440000","group":"df",'
    b'"element":"transform","data":"hello world","priority":5,"timeout_ms":1000}}',
    b'{"payload":{"data":{"a":[1,-2.5e3,true,null,"\\u00e9\\ud83d\\ude00"]},"dependencies":["x"],"element":"tr",'
    b'"group":"cf","id":"x","metadata":{"k":1},"priority":7.0,"timeout_ms":null,"version":"1.1"},"seq":2,"type":"submit"}',
    b'{"type":"result","seq":1,"payload":{"packet_id":"550e8400-e29b-41d4-a716-446655440000","status":"success",'
    b'"data":[1,2],"duration_ms":3}}',
    b'{"type":"result","seq":0,"payload":{"packet_id":"x","status":"error","error":{"code":"PF500","message":"m"},'
    b'"duration_ms":-1}}',
    b'{"type":"error","seq":3,"payload":{"code":"PF499","message":"m","packet_id":"x"}}',
    b'{"type":"heartbeat","seq":4,"payload":{"timestamp":1,"reactor":"r","capabilities":["df:x"],"window":5,"load":0,'
    b'"ext":["cancel"]}}',
]
# a link's script: see fuzz_link.py
SCRIPTS = [bytes([0x51, len(frame)]) + frame for frame in FRAMES if len(frame) < 256]
SCRIPTS += [
    b"\x41\x05{}abc\x50\x03xyz",
    b"\xa0\x07[1,2,3]\xa1\x04null\xff\x00",
    b"\x59\x00\x58\x02\x03\xe8",
    b"\x00\x04\x81\x81ab",
]

# a gateway's script is choices; any bytes are one, and random ones reach far
CHOICES = [random.Random(number).randbytes(60 + 20 * number) for number in range(40)]

seeds = {"codec": FRAMES, "link": SCRIPTS, "fabric": CHOICES}[sys.argv[1]]
for number, seed in enumerate(seeds):
    (Path(sys.argv[2]) / f"seed-{number}").write_bytes(seed)
