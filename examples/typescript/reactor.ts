// A PacketFlow reactor for Node: copy it and start from here. It announces its
// handlers, keeps to deadlines, answers with the submit's seq, and dials again.

import { randomUUID } from 'node:crypto';
import { WebSocket, type RawData } from 'ws';

export type Group = 'cf' | 'df' | 'ed' | 'co' | 'mc' | 'rm';

export interface Packet {
  version: string;
  id: string;
  group: Group;
  element: string;
  data: unknown;
  priority: number;
  timeout_ms?: number | null;
  dependencies?: string[] | null;
  metadata?: Record<string, unknown> | null;
}

/** What `submit` takes: the rest of a packet is filled in. */
export type Work = Pick<Packet, 'group' | 'element'> & Partial<Packet>;

export interface Failure {
  code: string;
  message: string;
  details?: Record<string, unknown>;
}

export interface Result {
  packet_id: string;
  status: 'success' | 'error';
  data?: unknown;
  error?: Failure | null;
  duration_ms: number;
}

export type Handler = (data: any, packet: Packet) => unknown;

/** A packet that failed: `code` is one of PacketFlow's, such as PF408. */
export class PacketFlowError extends Error {
  readonly code: string;
  readonly reason: string;
  readonly details: Record<string, unknown> | undefined;

  constructor({ code, message, details }: Failure) {
    super(`${code}: ${message}`);
    this.code = code;
    this.reason = message;
    this.details = details;
  }
}

interface Waiter {
  seq: number;
  resolve(result: Result): void;
  reject(error: PacketFlowError): void;
  timer: NodeJS.Timeout;
}

const HEARTBEAT_MS = 30_000;
const DEFAULT_TIMEOUT_MS = 29_500;
const LONGEST_DELAY_MS = 5_000;

export class Reactor {
  private socket: WebSocket | undefined;
  private sequence = 0;
  private delay = 100;
  private stopping = false;
  private beat: NodeJS.Timeout | undefined;
  private readonly handlers = new Map<string, Handler>();
  private readonly waiters = new Map<string, Waiter>();
  private readonly bySeq = new Map<number, string>();

  /** `endpoint`: ws://[name:token@]host:port/packetflow/v1. `window`: packets taken at once. */
  constructor(
    private readonly endpoint: string,
    private readonly options: { name?: string; window?: number } = {},
  ) {}

  /** Connects; rejects if nobody answers. Later losses are made good by dialling again. */
  start(): Promise<void> {
    this.stopping = false;
    return new Promise((resolve, reject) => this.dial(resolve, reject));
  }

  stop(): void {
    this.stopping = true;
    clearInterval(this.beat);
    this.socket?.close(1000);
    this.failAll('the reactor was stopped');
  }

  register(group: Group, element: string, handler: Handler): void {
    this.handlers.set(`${group}:${element}`, handler);
    this.heartbeat(); // the gateway learns of it at once
  }

  /** The result of a packet, whatever its handler did; rejects where there is no answer. */
  submit(work: Work): Promise<Result> {
    const packet: Packet = { version: '1.0', id: randomUUID(), data: null, priority: 5, ...work };
    return new Promise((resolve, reject) => {
      const socket = this.socket;
      if (socket?.readyState !== WebSocket.OPEN) {
        reject(new PacketFlowError({ code: 'PF502', message: 'not connected' }));
        return;
      }
      const seq = this.next();
      // the gateway keeps the deadline; we give up a second later
      const timer = setTimeout(() => {
        this.take(packet.id)?.reject(new PacketFlowError({ code: 'PF408', message: 'no answer came' }));
      }, (packet.timeout_ms ?? DEFAULT_TIMEOUT_MS) + 1_000);
      this.waiters.set(packet.id, { seq, resolve, reject, timer });
      this.bySeq.set(seq, packet.id);
      this.send('submit', seq, packet);
    });
  }

  /** The data of a packet's result, or a PacketFlowError. */
  async call<T = unknown>(group: Group, element: string, data: unknown = null, more: Partial<Packet> = {}): Promise<T> {
    const result = await this.submit({ group, element, data, ...more });
    if (result.status === 'success') return (result.data ?? null) as T;
    throw new PacketFlowError(result.error ?? { code: 'PF500', message: 'no reason was given' });
  }

  private dial(opened: () => void, failed: (error: Error) => void): void {
    const socket = new WebSocket(this.endpoint, { perMessageDeflate: false, handshakeTimeout: 5_000 });
    this.socket = socket;
    socket.on('open', () => {
      this.delay = 100;
      this.heartbeat();
      this.beat = setInterval(() => this.heartbeat(), HEARTBEAT_MS);
      opened();
    });
    socket.on('message', (data) => this.receive(data));
    socket.on('error', failed);
    socket.on('close', () => {
      clearInterval(this.beat);
      this.failAll('the connection was lost; the packet may have run or not');
      if (this.stopping) return;
      // jitter: many reactors must not come back in the same millisecond
      setTimeout(() => this.stopping || this.dial(() => {}, () => {}), this.delay * (0.2 + 0.8 * Math.random()));
      this.delay = Math.min(2 * this.delay, LONGEST_DELAY_MS);
    });
  }

  private next(): number {
    this.sequence = this.sequence < Number.MAX_SAFE_INTEGER ? this.sequence + 1 : 1;
    return this.sequence;
  }

  private send(type: string, seq: number, payload: unknown): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, seq, payload }));
  }

  private heartbeat(): void {
    const { name, window = 256 } = this.options;
    const capabilities = [...this.handlers.keys()];
    this.send('heartbeat', this.next(), { timestamp: Date.now(), reactor: name, capabilities, window });
  }

  private receive(data: RawData): void {
    let message: { type: string; seq: number; payload: any };
    try {
      message = JSON.parse(data.toString());
    } catch {
      return; // a gateway sends JSON; what is none is nobody's answer
    }
    const { type, seq, payload } = message;
    if (type === 'submit') void this.handle(payload as Packet, seq);
    else if (type === 'result') this.take(payload.packet_id)?.resolve(payload as Result);
    else if (type === 'error') this.take(this.bySeq.get(seq) ?? '')?.reject(new PacketFlowError(payload));
  }

  private take(id: string): Waiter | undefined {
    const waiter = this.waiters.get(id);
    if (waiter !== undefined) {
      clearTimeout(waiter.timer);
      this.waiters.delete(id);
      this.bySeq.delete(waiter.seq);
    }
    return waiter;
  }

  private failAll(message: string): void {
    for (const id of [...this.waiters.keys()]) this.take(id)?.reject(new PacketFlowError({ code: 'PF502', message }));
  }

  private async handle(packet: Packet, seq: number): Promise<void> {
    const began = performance.now();
    const answer = (outcome: Partial<Result>) =>
      this.send('result', seq, { packet_id: packet.id, ...outcome, duration_ms: Math.round(performance.now() - began) });
    const fail = (error: Failure) => answer({ status: 'error', error });
    const handler = this.handlers.get(`${packet.group}:${packet.element}`);
    if (handler === undefined) return fail({ code: 'PF001', message: `no handler for ${packet.group}:${packet.element}` });
    try {
      answer({ status: 'success', data: (await handler(packet.data, packet)) ?? null });
    } catch (thrown) {
      if (thrown instanceof PacketFlowError) fail({ code: thrown.code, message: thrown.reason });
      else fail({ code: 'PF500', message: thrown instanceof Error ? thrown.message : String(thrown) });
    }
  }
}
