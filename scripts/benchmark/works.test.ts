import { describe, expect, it } from "vitest";
import { groups, WORKS } from "./works.ts";

const named = (text: string) => WORKS.filter((work) => work.name.includes(text));

describe("the works", () => {
  it("have different names, short enough for the table", () => {
    const names = WORKS.map((work) => work.name);
    expect(new Set(names).size).toBe(names.length);
    expect(names.filter((name) => name.length > 40)).toEqual([]);
  });

  it("are compared with works that exist, on the same peers", () => {
    for (const work of WORKS.filter((each) => each.comparedWith !== undefined)) {
      const other = WORKS.find((each) => each.name === work.comparedWith);
      expect(other?.worksOnRaw).toBe(work.worksOnRaw);
    }
  });

  it("ask nothing of a raw image that only qcow2 has", () => {
    const onRaw = WORKS.filter((work) => work.worksOnRaw).map((work) => work.name);
    expect(onRaw.filter((name) => /stream|first write|chain/.test(name))).toEqual([]);
    expect(onRaw).toContain("write 4 KiB and flush each, depth 1");
  });

  it("run together when they are compared, else alone", () => {
    const together = groups(WORKS).filter((group) => group.length > 1);
    expect(together.map((group) => group.map((work) => work.name))).toEqual([
      ["read 4 KiB random, depth 32, one image", "read 4 KiB random, depth 32, chain of 32"],
    ]);
    expect(groups(named("chain of 32"))).toHaveLength(1);
    expect(groups(WORKS).flat()).toHaveLength(WORKS.length);
  });
});
