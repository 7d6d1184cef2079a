// Driven by tests/interop over standard input and output, a JSON object a line:
//   tsx peer.ts ENDPOINT worker|client|doomed|conformance
// Commands carry a `tag`, which the answer to them has, too.

import { createInterface } from 'node:readline';
import type { RawData } from 'ws';
import { Reactor, type Group, type Message, type Packet, type Result } from './reactor.ts';

const say = (line: unknown) => process.stdout.write(JSON.stringify(line) + '\n');
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** The listing's reactor, and by hand what a test wants to go wrong. */
class Peer extends Reactor {
  private readonly texts = new Map<string, (text: string) => void>();

  /** Sends a text as it stands; resolves with the text of the answer that names `id`. */
  raw(text: string, id: string): Promise<string> {
    return new Promise((resolve) => {
      this.texts.set(id, resolve);
      this.socket?.send(text);
    });
  }

  write(text: string): void {
    this.socket?.send(text);
  }

  protected override receive(data: RawData): void {
    const text = data.toString();
    for (const [id, resolve] of this.texts) {
      if (text.includes(`"${id}"`) && !text.includes('"type":"submit"')) {
        this.texts.delete(id);
        resolve(text);
      }
    }
    super.receive(data);
  }

  protected override closed(): void {
    say({ closed: true });
  }

  protected override async process(packet: Packet, seq: number): Promise<void> {
    const result = (data: unknown): Result => ({ packet_id: packet.id, status: 'success', data, duration_ms: 0 });
    const put = (at: number, payload: unknown) => this.send({ type: 'result', seq: at, payload } as Message);
    switch (`${packet.group}:${packet.element}`) {
      case 'df:crooked.right':
        return put(seq, result('right'));
      case 'df:crooked.wrong':
        return put(987654321, result('wrong seq'));
      case 'df:crooked.noid':
        return put(seq, { status: 'success', data: 'no id', duration_ms: 0 });
      case 'df:crooked.twice':
        put(0, result('first'));
        return put(0, result('second'));
      case 'df:crooked.beat':
        this.send({ type: 'heartbeat', seq, payload: { timestamp: Date.now() } });
        return put(0, result('after a heartbeat'));
    }
    return super.process(packet, seq);
  }
}

const [endpoint, role] = process.argv.slice(2);
const peer = new Peer(endpoint!);
let noted = 0;

if (role === 'worker') {
  peer.register('df', 'echo', async (data) => data);
  peer.register('df', 'transform', async (data: string) => data.toUpperCase());
  peer.register('df', 'who', async () => 'typescript');
  peer.register('df', 'fail', async (data) => {
    throw new Error(String(data));
  });
  peer.register('df', 'throw', async () => {
    throw 'not an Error';
  });
  peer.register('df', 'never', () => new Promise(() => {}));
  peer.register('df', 'sleep', async (ms: number) => {
    await sleep(ms);
    return ms;
  });
  peer.register('df', 'note', async () => ++noted);
} else if (role === 'client') {
  peer.register('df', 'self.typescript', async (data) => ({ self: data }));
} else if (role === 'conformance') {
  peer.register('df', 'conformance.echo', async (data) => data);
  peer.register('df', 'conformance.fail', async () => {
    throw new Error('on purpose');
  });
} else {
  peer.register('df', 'doomed.typescript', () => {
    say({ started: true });
    return new Promise(() => {});
  });
}

async function flood(packet: Omit<Packet, 'version' | 'id'>, count: number, outstanding: number): Promise<unknown> {
  let next = 0;
  let right = 0;
  const lane = async () => {
    while (next < count) {
      const data = next++;
      const result = await peer.submit({ ...packet, data });
      if (result.status === 'success' && result.data === data) right += 1;
    }
  };
  await Promise.all(Array.from({ length: outstanding }, lane));
  return { right };
}

async function run(command: any): Promise<unknown> {
  switch (command.op) {
    case 'submit': {
      const packet = command.packet;
      if (command.frame !== undefined) {
        // data of the size that makes the whole frame this long
        const blank = { version: '1.0', id: 'x'.repeat(36), ...packet, data: '' };
        const empty = JSON.stringify({ type: 'submit', seq: peer.next, payload: blank });
        packet.data = 'x'.repeat(command.frame - empty.length);
        const result = await peer.submit(packet);
        return { result: { ...result, data: (result.data as string) === packet.data } };
      }
      return { result: await peer.submit(packet) };
    }
    case 'flood':
      return flood(command.packet, command.count, command.outstanding);
    case 'raw':
      return { text: await peer.raw(command.text, command.id) };
    case 'write':
      peer.write(command.text);
      return {};
    case 'restart':
      peer.stop();
      await peer.start();
      return {};
  }
  throw new Error(`unknown command ${command.op}`);
}

createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const command = JSON.parse(line);
    try {
      say({ tag: command.tag, ...((await run(command)) as object) });
    } catch (error) {
      say({ tag: command.tag, rejected: error instanceof Error ? error.message : error });
    }
  })
  .on('close', () => process.exit(0));

await peer.start();
say({ ready: true });

if (role === 'conformance') {
  let told: unknown = null;
  while (told !== 'done') {
    const result = await peer.submit({ group: 'df', element: 'conformance.next', data: told, priority: 5 });
    told = result.status === 'success' ? result.data : result.error!.code;
  }
}
