// Opens examples/browser in headless Chromium, and drives it over standard input
// and output, a JSON object a line: tsx browser.ts URL

import { createInterface } from 'node:readline';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const say = (line: unknown) => process.stdout.write(JSON.stringify(line) + '\n');

const profile = mkdtempSync(join(tmpdir(), 'packetflow-browser-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ],
});
// tsx wraps named functions in a helper that the page does not have
await context.addInitScript('globalThis.__name = (named) => named');
const page = await context.newPage();

async function run(command: any): Promise<object> {
  switch (command.op) {
    case 'state':
      return { result: await page.textContent('#state') };
    case 'open':
      await page.goto(command.url);
      await page.waitForFunction(() => document.querySelector('#state')!.textContent !== 'connecting');
      return { result: await page.textContent('#state') };
    case 'press': {
      await page.fill('input[name=text]', command.text);
      const before = (await page.textContent('output')) ?? '';
      await page.click('button');
      await page.waitForFunction((seen) => document.querySelector('output')!.textContent !== seen, before);
      return { result: ((await page.textContent('output')) ?? '').slice(before.length) };
    }
    case 'submit':
      return { result: await page.evaluate((packet) => (window as any).reactor.submit(packet), command.packet) };
    case 'register':
      await page.evaluate(([group, element]) => (window as any).reactor.register(group, element, (data: any) => data), [
        command.group,
        command.element,
      ]);
      return {};
    case 'flood':
      return {
        right: await page.evaluate(async ({ packet, count, outstanding }) => {
          let next = 0;
          let right = 0;
          const lane = async () => {
            while (next < count) {
              const data = next++;
              const result = await (window as any).reactor.submit({ ...packet, data });
              if (result.status === 'success' && result.data === data) right += 1;
            }
          };
          await Promise.all(Array.from({ length: outstanding }, lane));
          return right;
        }, command),
      };
  }
  throw new Error(`unknown command ${command.op}`);
}

createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const command = JSON.parse(line);
    try {
      say({ tag: command.tag, ...(await run(command)) });
    } catch (error) {
      say({ tag: command.tag, rejected: String(error) });
    }
  })
  .on('close', async () => {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
    process.exit(0);
  });

say({ ready: true });
