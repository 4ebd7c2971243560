import { expect, it } from "vitest";
import { ReadEpochs } from "./read-epochs.ts";

/** Waits, and notes how that ended. */
function drain(epochs: ReadEpochs, log: boolean[]): void {
  const drained = epochs.drained();
  if (drained === true) log.push(true);
  else drained.then((how) => log.push(how));
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

it("waits for the reads that began before, and for no later ones", async () => {
  const epochs = new ReadEpochs();
  const log: boolean[] = [];
  drain(epochs, log);
  expect(log).toEqual([true]);
  const first = epochs.begin();
  const second = epochs.begin();
  drain(epochs, log);
  const later = epochs.begin();
  epochs.end(first);
  await turn();
  expect(log).toEqual([true]);
  epochs.end(second);
  await turn();
  expect(log).toEqual([true, true]);
  epochs.end(later);
});

it("waits for a read again that somebody gave up waiting for, in each call after it", async () => {
  const epochs = new ReadEpochs();
  const log: boolean[] = [];
  const stuck = epochs.begin();
  for (let i = 0; i < 3; i++) {
    const other = epochs.begin();
    drain(epochs, log);
    epochs.end(other);
    await turn();
    expect(log.length).toBe(i);
    epochs.giveUp();
    await turn();
    expect(log[i]).toBe(false);
  }
  drain(epochs, log);
  epochs.end(stuck);
  await turn();
  expect(log[3]).toBe(true);
  drain(epochs, log);
  expect(log[4]).toBe(true);
});
