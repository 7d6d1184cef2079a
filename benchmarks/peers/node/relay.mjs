// What a gateway does, with Node's ws and no more: parses each frame, sends submits to workers in turn, results back.
import { WebSocketServer } from "ws";

const workers = [];
const waiting = new Map();
let turn = 0, sequence = 0;

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: false });
server.on("connection", (ws, request) => {
  if (request.url.includes("worker")) workers.push(ws);
  ws.on("message", (raw) => {
    const { type, seq, payload } = JSON.parse(raw.toString());
    if (type === "submit") {
      const own = ++sequence;
      waiting.set(own, { ws, seq });
      workers[turn++ % workers.length].send(JSON.stringify({ type, seq: own, payload }));
    } else if (type === "result") {
      const origin = waiting.get(seq);
      if (origin) {
        waiting.delete(seq);
        origin.ws.send(JSON.stringify({ type, seq: origin.seq, payload }));
      }
    }
  });
});
