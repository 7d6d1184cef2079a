// A PacketFlow reactor for browsers, on plain WebSocket: copy it and start from
// here. It announces its handlers, answers with the submit's seq, and dials again.

const HEARTBEAT_MS = 30_000;
const DEFAULT_TIMEOUT_MS = 29_500;
const LONGEST_DELAY_MS = 5_000;

/** A packet that failed: `code` is one of PacketFlow's, such as PF408. */
export class PacketFlowError extends Error {
  constructor({ code, message, details }) {
    super(`${code}: ${message}`);
    this.code = code;
    this.reason = message;
    this.details = details;
  }
}

export class Reactor {
  #endpoint;
  #options;
  #socket;
  #sequence = 0;
  #delay = 100;
  #stopping = false;
  #beat;
  #handlers = new Map();
  #waiters = new Map();
  #bySeq = new Map();

  /** `endpoint`: ws://host:port/packetflow/v1. `token` travels as a subprotocol: a page cannot set headers. */
  constructor(endpoint, { name, token, window = 64 } = {}) {
    this.#endpoint = endpoint;
    this.#options = { name, token, window };
  }

  /** Connects; rejects if nobody answers. Later losses are made good by dialling again. */
  start() {
    this.#stopping = false;
    return new Promise((resolve, reject) => this.#dial(resolve, reject));
  }

  stop() {
    this.#stopping = true;
    this.#socket?.close(1000);
  }

  /** `handler` is given (data, packet); what it returns or resolves with is the answer. */
  register(group, element, handler) {
    this.#handlers.set(`${group}:${element}`, handler);
    this.#heartbeat(); // the gateway learns of it at once
  }

  /** The result of a packet, whatever its handler did; rejects where there is no answer. */
  submit(work) {
    const packet = { version: '1.0', id: uuid(), data: null, priority: 5, ...work };
    return new Promise((resolve, reject) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) {
        reject(new PacketFlowError({ code: 'PF502', message: 'not connected' }));
        return;
      }
      const seq = this.#next();
      // the gateway keeps the deadline; we give up a second later
      const timer = setTimeout(() => {
        this.#take(packet.id)?.reject(new PacketFlowError({ code: 'PF408', message: 'no answer came' }));
      }, (packet.timeout_ms ?? DEFAULT_TIMEOUT_MS) + 1_000);
      this.#waiters.set(packet.id, { seq, resolve, reject, timer });
      this.#bySeq.set(seq, packet.id);
      this.#send('submit', seq, packet);
    });
  }

  /** The data of a packet's result, or a PacketFlowError. */
  async call(group, element, data = null, more = {}) {
    const result = await this.submit({ group, element, data, ...more });
    if (result.status === 'success') return result.data ?? null;
    throw new PacketFlowError(result.error ?? { code: 'PF500', message: 'no reason was given' });
  }

  #dial(opened, failed) {
    const { token } = this.#options;
    const socket = new WebSocket(this.#endpoint, token ? ['packetflow', `bearer.${token}`] : []);
    this.#socket = socket;
    socket.onopen = () => {
      this.#delay = 100;
      this.#heartbeat();
      this.#beat = setInterval(() => this.#heartbeat(), HEARTBEAT_MS);
      opened();
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onerror = () => failed(new PacketFlowError({ code: 'PF502', message: `cannot connect to ${this.#endpoint}` }));
    socket.onclose = () => {
      clearInterval(this.#beat);
      const error = { code: 'PF502', message: 'the connection was lost; the packet may have run or not' };
      for (const id of [...this.#waiters.keys()]) this.#take(id).reject(new PacketFlowError(error));
      if (this.#stopping) return;
      // jitter: many reactors must not come back in the same millisecond
      setTimeout(() => this.#stopping || this.#dial(() => {}, () => {}), this.#delay * (0.2 + 0.8 * Math.random()));
      this.#delay = Math.min(2 * this.#delay, LONGEST_DELAY_MS);
    };
  }

  #next() {
    this.#sequence = this.#sequence < Number.MAX_SAFE_INTEGER ? this.#sequence + 1 : 1;
    return this.#sequence;
  }

  #send(type, seq, payload) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type, seq, payload }));
  }

  #heartbeat() {
    const { name, window } = this.#options;
    const capabilities = [...this.#handlers.keys()];
    this.#send('heartbeat', this.#next(), { timestamp: Date.now(), reactor: name, capabilities, window });
  }

  #receive(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // a gateway sends JSON; what is none is nobody's answer
    }
    const { type, seq, payload } = message;
    if (type === 'submit') this.#handle(payload, seq);
    else if (type === 'result') this.#take(payload.packet_id)?.resolve(payload);
    else if (type === 'error') this.#take(this.#bySeq.get(seq))?.reject(new PacketFlowError(payload));
  }

  #take(id) {
    const waiter = this.#waiters.get(id);
    if (waiter !== undefined) {
      clearTimeout(waiter.timer);
      this.#waiters.delete(id);
      this.#bySeq.delete(waiter.seq);
    }
    return waiter;
  }

  async #handle(packet, seq) {
    const began = performance.now();
    const answer = (outcome) =>
      this.#send('result', seq, { packet_id: packet.id, ...outcome, duration_ms: Math.round(performance.now() - began) });
    const handler = this.#handlers.get(`${packet.group}:${packet.element}`);
    if (handler === undefined) {
      const message = `no handler for ${packet.group}:${packet.element}`;
      return answer({ status: 'error', error: { code: 'PF001', message } });
    }
    try {
      answer({ status: 'success', data: (await handler(packet.data, packet)) ?? null });
    } catch (thrown) {
      const failure =
        thrown instanceof PacketFlowError
          ? { code: thrown.code, message: thrown.reason }
          : { code: 'PF500', message: thrown instanceof Error ? thrown.message : String(thrown) };
      answer({ status: 'error', error: failure });
    }
  }
}

/** crypto.randomUUID is for secure contexts only; getRandomValues is for all. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
