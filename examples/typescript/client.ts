// npm run client -- [ENDPOINT]: submits to whoever handles df:uppercase, and shows a failure.

import { PacketFlowError, Reactor } from './reactor.ts';

const endpoint = process.argv[2] ?? 'ws://127.0.0.1:8443/packetflow/v1';
const reactor = new Reactor(endpoint);
await reactor.start();

console.log(await reactor.call('df', 'uppercase', 'hello world', { priority: 9 }));
try {
  await reactor.call('df', 'nobody', null, { timeout_ms: 1_000 });
} catch (error) {
  if (!(error instanceof PacketFlowError)) throw error;
  console.log(error.message);
}
reactor.stop();
