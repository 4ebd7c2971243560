import { describe, expect, it } from "vitest";
import { COMMANDS } from "../commands/all.ts";
import { EVENTS } from "./events.ts";
import { introspect } from "./introspection.ts";

type Entry = Record<string, unknown> & { name: string; "meta-type": string };

const schema = introspect(COMMANDS, EVENTS) as Entry[];
const byName = new Map(schema.map((entry) => [entry.name, entry]));

function member(type: unknown, name: string) {
  const members = byName.get(type as string)!["members"] as { name: string; type: string; default?: null }[];
  return members.find((one) => one.name === name)!;
}

describe("query-qmp-schema", () => {
  it("names every command and event, and no name twice", () => {
    const names = schema.map((entry) => entry.name);
    expect(new Set(names).size).toBe(names.length);
    for (const { name } of COMMANDS) expect(byName.get(name)).toMatchObject({ "meta-type": "command" });
    for (const { name } of EVENTS) expect(byName.get(name)).toMatchObject({ "meta-type": "event" });
  });

  it("describes every type that it mentions", () => {
    const mentioned = JSON.stringify(schema).matchAll(/"(?:type|arg-type|ret-type|element-type)":"([^"]+)"/g);
    for (const [, name] of mentioned) expect(byName.has(name!), name).toBe(true);
  });

  it("has the members of the reference where clients look for them", () => {
    const stream = byName.get("block-stream")!["arg-type"];
    expect(member(stream, "device")).toEqual({ name: "device", type: "str" });
    expect(member(stream, "speed")).toEqual({ name: "speed", type: "int", default: null });
    expect(byName.get(member(stream, "on-error").type)).toMatchObject({
      "meta-type": "enum",
      values: ["report", "ignore", "enospc", "stop", "auto"],
    });
    const add = byName.get(byName.get("blockdev-add")!["arg-type"] as string)!;
    expect(add).toMatchObject({ "meta-type": "object", tag: "driver" });
    const variants = add["variants"] as { case: string; type: string }[];
    expect(variants.map((variant) => variant.case)).toEqual(["blkdebug", "file", "raw", "qcow2"]);
    const qcow2 = variants.find((variant) => variant.case === "qcow2")!.type;
    const backing = byName.get(member(qcow2, "backing").type)!;
    expect(backing["meta-type"]).toBe("alternate");
    expect(byName.get("query-jobs")!["ret-type"]).toMatch(/^\[\d+\]$/);
  });
});
