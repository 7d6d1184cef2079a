// The handling half of the specification's TypeScript reactor, answering with the submit's seq.
import { WebSocketServer } from "ws";

const work = (data) => (typeof data === "string" ? data.toUpperCase() : { ...data, text: data.text.toUpperCase() });
const handlers = new Map([["df:transform", async (data) => work(data)]]);

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: false });
server.on("connection", (ws) => {
  ws.on("message", async (raw) => {
    const { type, seq, payload: packet } = JSON.parse(raw.toString());
    if (type !== "submit") return;
    const handler = handlers.get(`${packet.group}:${packet.element}`);
    const started = Date.now();
    const data = await handler(packet.data);
    const payload = { packet_id: packet.id, status: "success", data, duration_ms: Date.now() - started };
    ws.send(JSON.stringify({ type: "result", seq, payload }));
  });
});
