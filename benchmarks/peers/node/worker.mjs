// The handling half of the specification's TypeScript reactor, dialling a relay.
import { WebSocket } from "ws";

const work = (data) => (typeof data === "string" ? data.toUpperCase() : { ...data, text: data.text.toUpperCase() });
const ws = new WebSocket(`ws://127.0.0.1:${process.argv[2]}/worker`, { perMessageDeflate: false });
ws.on("message", async (raw) => {
  const { type, seq, payload: packet } = JSON.parse(raw.toString());
  if (type !== "submit") return;
  const data = work(packet.data);
  ws.send(JSON.stringify({ type: "result", seq,
    payload: { packet_id: packet.id, status: "success", data, duration_ms: 0 } }));
});
