// Runs tests/vectors with what an ordinary JSON parser gives: tsx vectors.ts FOLDER
// Frames marked `strict` (a key twice, lone surrogates) an ordinary parser lets pass:
// a gateway refuses them, a reactor behind one never sees them.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';

class Refused extends Error {
  constructor(readonly code: string, message: string) {
    super(message);
  }
}

type Fields = Record<string, unknown>;

function need(condition: unknown, message: string, code = 'PF400'): asserts condition {
  if (!condition) throw new Refused(code, message);
}

const bytes = (text: string) => new TextEncoder().encode(text).length;
const isObject = (value: unknown): value is Fields => typeof value === 'object' && value !== null && !Array.isArray(value);
const isId = (value: unknown): value is string => typeof value === 'string' && value !== '' && bytes(value) <= 128;
const within = (value: unknown, low: number, high: number) => Number.isInteger(value) && (value as number) >= low && (value as number) <= high;

function depth(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0;
  return 1 + Math.max(0, ...Object.values(value).map(depth));
}

function packet(payload: Fields): Fields {
  const { version, id, group, element, data = null } = payload;
  need(typeof version === 'string', 'version: expected a text');
  need(version.startsWith('1.'), 'version: expected 1.x', 'PF426');
  need(isId(id), 'id: expected 1 to 128 bytes');
  need(['cf', 'df', 'ed', 'co', 'mc', 'rm'].includes(group as string), 'group: expected one of six');
  need(typeof element === 'string' && /^[A-Za-z0-9_.-]{1,64}$/.test(element) && !element.endsWith('\n'), 'element');
  const fields: Fields = { version, id, group, element, data, priority: payload.priority ?? 5 };
  need(within(fields.priority, 1, 10), 'priority: expected 1 to 10');
  if (payload.timeout_ms != null) {
    need(within(payload.timeout_ms, 1, 300_000), 'timeout_ms: expected 1 to 300000');
    fields.timeout_ms = payload.timeout_ms;
  }
  if (payload.dependencies != null) {
    const ids = payload.dependencies;
    need(Array.isArray(ids) && ids.length <= 64 && ids.every(isId), 'dependencies: expected at most 64 ids');
    if (ids.length > 0) fields.dependencies = ids;
  }
  if (payload.metadata != null) {
    need(isObject(payload.metadata), 'metadata: expected an object');
    fields.metadata = payload.metadata;
  }
  return fields;
}

function result(payload: Fields): Fields {
  const { packet_id, status, duration_ms, error } = payload;
  need(isId(packet_id), 'packet_id');
  need(status === 'success' || status === 'error', 'status: expected "success" or "error"');
  const fields: Fields = { packet_id, status, duration_ms };
  if (status === 'success') fields.data = payload.data ?? null;
  if (error != null) {
    need(isObject(error), 'error: expected an object');
    fields.error = error;
  }
  return fields;
}

function decode(frame: Uint8Array): Fields {
  let message: unknown;
  try {
    message = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(frame));
  } catch (error) {
    throw new Refused('PF400', String(error));
  }
  need(isObject(message), 'frame: expected an object');
  need(depth(message) <= 64, 'frame: at most 64 levels');
  const { type, seq, payload } = message;
  need(['submit', 'result', 'error', 'heartbeat'].includes(type as string), 'type: expected one of four');
  need(within(seq, type === 'submit' ? 1 : 0, Number.MAX_SAFE_INTEGER), 'seq');
  need(isObject(payload), 'payload: expected an object');
  return { type, seq, payload: type === 'submit' ? packet(payload) : type === 'result' ? result(payload) : payload };
}

/** JSON with sorted keys: equal texts are equal values. */
function sorted(value: unknown): string {
  return JSON.stringify(value, (_, inner) =>
    isObject(inner) ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1))) : inner,
  );
}

const folder = process.argv[2]!;
const load = (name: string) => JSON.parse(readFileSync(join(folder, name), 'utf8')).frames as any[];
const failures: string[] = [];
let caught = 0;

const valid = load('valid.json');
for (const vector of valid) {
  try {
    const got = decode(Buffer.from(vector.frame));
    if (sorted(got) !== sorted(vector.decodes)) failures.push(`${vector.name}: ${sorted(got)}`);
  } catch (error) {
    failures.push(`${vector.name}: ${error}`);
  }
}
const invalid = load('invalid.json');
for (const vector of invalid) {
  try {
    decode(vector.hex === undefined ? Buffer.from(vector.frame) : Buffer.from(vector.hex, 'hex'));
    if (!vector.strict) failures.push(`${vector.name}: taken`);
  } catch (error) {
    if (!(error instanceof Refused) || error.code !== vector.code) failures.push(`${vector.name}: ${error}`);
    else caught += 1;
  }
}
console.log(JSON.stringify({ valid: valid.length, invalid: invalid.length, caught, failures }));
process.exit(failures.length === 0 ? 0 : 1);
