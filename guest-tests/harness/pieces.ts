// A disk written in pieces of which each holds its own byte, for tests in which writes fail.

import { expect } from "vitest";
import type { NbdClient } from "../../nbd/client.ts";
import { KiB } from "../../src/base/units.ts";

export const PIECE = 256 * KiB;

export const piece = (index: number): Buffer => Buffer.alloc(PIECE, index + 1);

/** "ok", or the code of the error. */
export const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "ok",
    (error: { code?: string }) => error.code ?? String(error),
  );

/** Writes pieces from `from` on until one fails; its number, and how it failed. */
export async function fill(client: NbdClient, from = 0, to = 256): Promise<{ next: number; code: string }> {
  for (let next = from; next < to; next++) {
    const code = await codeOf(client.write(next * PIECE, piece(next)));
    if (code !== "ok") return { next, code };
  }
  return { next: to, code: "ok" };
}

export async function expectPieces(client: NbdClient, to: number, from = 0): Promise<void> {
  for (let index = from; index < to; index++) {
    expect((await client.read(index * PIECE, PIECE)).equals(piece(index)), `piece ${index}`).toBe(true);
  }
}

/** Each sector of a piece is one of these. */
export async function expectEither(client: NbdClient, index: number, ...allowed: Buffer[]): Promise<void> {
  const found = await client.read(index * PIECE, PIECE);
  for (let at = 0; at < PIECE; at += 512) {
    const sector = found.subarray(at, at + 512);
    const isAllowed = allowed.some((bytes) => bytes.subarray(at, at + 512).equals(sector));
    expect(isAllowed, `piece ${index}, byte ${at}: ${sector.subarray(0, 4).toString("hex")}`).toBe(true);
  }
}
