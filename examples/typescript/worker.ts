// npm run worker -- [ENDPOINT]: handles df:uppercase and df:sum until it is stopped.

import { Reactor } from './reactor.ts';

const endpoint = process.argv[2] ?? 'ws://127.0.0.1:8443/packetflow/v1';
const reactor = new Reactor(endpoint, { name: 'typescript-worker' });

reactor.register('df', 'uppercase', (text: string) => text.toUpperCase());
reactor.register('df', 'sum', (numbers: number[]) => numbers.reduce((sum, n) => sum + n, 0));

await reactor.start();
console.log(`connected to ${endpoint}`);
process.on('SIGINT', () => {
  reactor.stop();
  process.exit(0);
});
