import { describe, expect, it } from "vitest";
import { both, promised, settleAll } from "./completion.ts";

describe("both", () => {
  it("is done at once when both are", () => {
    expect(both(undefined, undefined)).toBeUndefined();
  });

  it("hands up the only promise itself", () => {
    const one = Promise.resolve();
    expect(both(one, undefined)).toBe(one);
    expect(both(undefined, one)).toBe(one);
  });

  it("waits for the second though the first failed: a borrowed buffer is free only then", async () => {
    const order: string[] = [];
    let finish!: () => void;
    const second = new Promise<void>((resolve) => {
      finish = resolve;
    }).then(() => void order.push("second settled"));
    const done = both(Promise.reject(new Error("first")), second) as Promise<void>;
    const failed = done.catch((error: Error) => order.push(`failed: ${error.message}`));
    setImmediate(finish);
    await failed;
    expect(order).toEqual(["second settled", "failed: first"]);
  });
});

it("settleAll tells the first error in order of the list", async () => {
  const late = new Promise<void>((_, reject) => setImmediate(() => reject(new Error("a"))));
  await expect(settleAll([undefined, late, Promise.reject(new Error("b"))])).rejects.toThrow("a");
  await expect(settleAll([])).resolves.toBeUndefined();
});

it("promised turns what is thrown at once into a rejection", async () => {
  const done = promised(() => {
    throw new Error("at once");
  });
  await expect(done).rejects.toThrow("at once");
  await expect(promised(() => 7)).resolves.toBe(7);
});
