// The submitting half of the specification's TypeScript reactor, under the same closed loop as the others.
import { randomUUID } from "node:crypto";
import { WebSocket } from "ws";

const [port, body, outstanding, seconds] = [
  process.argv[2], JSON.parse(process.argv[3]), Number(process.argv[4]), Number(process.argv[5])];

class Reactor {
  pending = new Map();
  sequence = 0;

  async start() {
    this.ws = new WebSocket(`ws://127.0.0.1:${port}/`, { perMessageDeflate: false });
    this.ws.on("message", (raw) => {
      const message = JSON.parse(raw.toString());
      const pending = this.pending.get(message.seq);
      if (pending) {
        this.pending.delete(message.seq);
        clearTimeout(pending.timer);
        pending.resolve(message.payload);
      }
    });
    await new Promise((resolve, reject) => {
      this.ws.on("open", resolve);
      this.ws.on("error", reject);
    });
  }

  submit(packet) {
    const seq = ++this.sequence;
    const payload = { version: "1.0", id: randomUUID(), ...packet };
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("timeout")), 30000);
      this.pending.set(seq, { resolve, reject, timer });
      this.ws.send(JSON.stringify({ type: "submit", seq, payload }));
    });
  }
}

const reactor = new Reactor();
await reactor.start();
const packet = { group: "df", element: "transform", data: body, priority: 5 };
const first = await reactor.submit(packet);
const wanted = typeof body === "string" ? body.toUpperCase() : body.text.toUpperCase();
if ((typeof body === "string" ? first.data : first.data.text) !== wanted) throw new Error("wrong answer");

let done = 0, ends = 0, took = 0, cpu = 0;
const worker = async () => {
  while (performance.now() < ends) {
    await reactor.submit(packet);
    done++;
  }
};
for (const stretch of [Math.min(0.3, seconds / 4), seconds]) {
  done = 0;
  const started = performance.now(), used = process.cpuUsage();
  ends = started + stretch * 1000;
  await Promise.all(Array.from({ length: outstanding }, worker));
  took = (performance.now() - started) / 1000;
  const { user, system } = process.cpuUsage(used);
  cpu = (user + system) / 1e6;
}
console.log(JSON.stringify({ requests: done, seconds: took, cpu }));
process.exit(0);
