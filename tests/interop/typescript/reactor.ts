// A reactor that says on the wire what the TypeScript listing of the PacketFlow
// specification says, and no more: results and PF001 carry seq 0, nothing is
// announced, a heartbeat holds a timestamp, an answer is looked up by seq alone,
// and 30 seconds is the only timeout. Written for the tests of interoperability;
// a reactor to start a program from is in examples/typescript.

import { randomUUID } from 'node:crypto';
import { WebSocket, type RawData } from 'ws';

export type Group = 'cf' | 'df' | 'ed' | 'co' | 'mc' | 'rm';

export interface Packet {
  version: '1.0';
  id: string;
  group: Group;
  element: string;
  data?: unknown;
  priority: number;
  timeout_ms?: number;
  dependencies?: string[];
  metadata?: Record<string, unknown>;
}

export interface Result {
  packet_id: string;
  status: 'success' | 'error';
  data?: unknown;
  error?: { code: string; message: string };
  duration_ms: number;
}

export interface Message {
  type: 'submit' | 'result' | 'error' | 'heartbeat';
  seq: number;
  payload: unknown;
}

export type Handler = (data: any) => Promise<unknown>;

interface Waiter {
  resolve(result: Result): void;
  reject(reason: unknown): void;
}

const TIMEOUT_MS = 30_000;
const HEARTBEAT_MS = 30_000;

export class Reactor {
  protected socket: WebSocket | null = null;
  private readonly handlers = new Map<string, Handler>();
  private readonly waiters = new Map<number, Waiter>();
  private sequence = 0;
  private beat: NodeJS.Timeout | undefined;

  constructor(private readonly endpoint: string) {}

  /** Opens the socket. The listing does not wait for it to be open; a caller here may. */
  start(): Promise<void> {
    const socket = new WebSocket(this.endpoint);
    this.socket = socket;
    socket.on('message', (data) => this.receive(data));
    socket.on('close', () => this.closed());
    this.beat = setInterval(() => this.heartbeat(), HEARTBEAT_MS);
    return new Promise((resolve, reject) => {
      socket.on('open', () => {
        this.heartbeat();
        resolve();
      });
      socket.on('error', reject);
    });
  }

  stop(): void {
    clearInterval(this.beat);
    this.socket?.close();
    this.socket = null;
  }

  register(group: Group, element: string, handler: Handler): void {
    this.handlers.set(`${group}:${element}`, handler);
  }

  submit(packet: Omit<Packet, 'version' | 'id'>): Promise<Result> {
    const whole: Packet = { version: '1.0', id: randomUUID(), ...packet };
    const seq = ++this.sequence;
    return new Promise((resolve, reject) => {
      this.waiters.set(seq, { resolve, reject });
      this.send({ type: 'submit', seq, payload: whole });
      setTimeout(() => {
        if (this.waiters.delete(seq)) reject(new Error(`Timeout waiting for response to seq ${seq}`));
      }, TIMEOUT_MS);
    });
  }

  /** The seq of the next submit. */
  get next(): number {
    return this.sequence + 1;
  }

  protected send(message: Message): void {
    this.socket?.send(JSON.stringify(message));
  }

  protected closed(): void {}

  protected receive(data: RawData): void {
    try {
      const message = JSON.parse(data.toString()) as Message;
      if (message.type === 'submit') void this.process(message.payload as Packet, message.seq);
      else if (message.type === 'result') this.take(message.seq)?.resolve(message.payload as Result);
      else if (message.type === 'error') this.take(message.seq)?.reject(message.payload);
    } catch (error) {
      console.error('message not understood:', error);
    }
  }

  private take(seq: number): Waiter | undefined {
    const waiter = this.waiters.get(seq);
    this.waiters.delete(seq);
    return waiter;
  }

  protected async process(packet: Packet, _seq: number): Promise<void> {
    const handler = this.handlers.get(`${packet.group}:${packet.element}`);
    if (handler === undefined) {
      const error = { code: 'PF001', message: `No handler for ${packet.group}:${packet.element}` };
      this.answer({ packet_id: packet.id, status: 'error', error, duration_ms: 0 });
      return;
    }
    const began = Date.now();
    try {
      const data = await handler(packet.data);
      this.answer({ packet_id: packet.id, status: 'success', data, duration_ms: Date.now() - began });
    } catch (thrown) {
      const message = thrown instanceof Error ? thrown.message : 'Unknown error';
      const error = { code: 'PF500', message };
      this.answer({ packet_id: packet.id, status: 'error', error, duration_ms: Date.now() - began });
    }
  }

  protected answer(payload: Result): void {
    this.send({ type: 'result', seq: 0, payload });
  }

  private heartbeat(): void {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.send({ type: 'heartbeat', seq: ++this.sequence, payload: { timestamp: Date.now() } });
    }
  }
}
