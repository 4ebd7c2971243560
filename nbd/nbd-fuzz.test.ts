import { expect, it } from "vitest";
import { judge } from "./testing/judged-conversation.ts";
import { NbdFuzz } from "./testing/nbd-fuzz.ts";
import { compact, concat, OPTS, option, optionReply, simpleReply, str, u16, u32 } from "./testing/peer.ts";

/** `STRATA_FUZZ_SEED=42 STRATA_FUZZ_CASES=1` runs one again; `scripts/fuzz nbd` runs millions. */
const FIRST = Number(process.env["STRATA_FUZZ_SEED"] ?? 1);
const CASES = Number(process.env["STRATA_FUZZ_CASES"] ?? 1000);

it(`survives ${CASES} hostile clients, from seed ${FIRST}`, async () => {
  const fuzz = new NbdFuzz();
  for (let seed = FIRST; seed < FIRST + CASES; seed++) {
    await fuzz.run(seed).catch((error: unknown) => {
      throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
    });
  }
  // Otherwise it would only test the handshake.
  if (CASES > 100) expect(fuzz.entered).toBeGreaterThan(CASES / 3);
});

it("judges", () => {
  const sent = concat(
    u32(3),
    option(OPTS.GO, str(""), u16(0)),
    compact({ type: 0, cookie: 5, length: 4 }),
    compact({ type: 3, cookie: 6 }),
  );
  const greeting = concat(Buffer.from("NBDMAGICIHAVEOPT"), u16(3));
  const ack = optionReply(OPTS.GO, 1);
  const data = simpleReply(5, 0, Buffer.alloc(4));
  const whole = (...parts: Buffer[]) => judge({ sent, got: concat(greeting, ...parts), whole: true });
  expect(whole(ack, data, simpleReply(6))).toBeUndefined();
  expect(whole(ack, data)).toMatch(/no answer to command 3/);
  expect(whole(ack, data, simpleReply(6), simpleReply(6))).toMatch(/that was not made/);
  expect(whole(ack, data, simpleReply(6, 77))).toMatch(/error 77/);
  expect(whole(ack, data.subarray(0, 18))).toMatch(/ends in the middle/);
  expect(whole(data)).toMatch(/without its magic/);
  expect(whole(optionReply(OPTS.GO, 9))).toMatch(/type 9/);
});
