import { describe, expect, it } from "vitest";
import { BlockError } from "../../base/errors.ts";
import { parseJson } from "../json-stream.ts";
import { parseKeyval } from "../keyval.ts";
import {
  alternate,
  any,
  array,
  bool,
  enumeration,
  int,
  nil,
  size,
  str,
  struct,
  uint32,
  uint64,
  union,
} from "./types.ts";
import { visit } from "./visitor.ts";

const color = enumeration("Color", ["red", "green"]);
const leaf = struct("Leaf", "", { name: str, "?color": color });
const base = struct("Base", "", { kind: enumeration("KindName", ["a", "b", "bare"]), "?on": bool });
const either = union("Either", "", base, "kind", {
  a: struct("A", "", { count: int }),
  b: struct("B", "", { leaf, "?leaves": array(leaf) }),
});
const ref = alternate<unknown>("Ref", "", () => [either, str, nil]);
const holder = struct("Holder", "", { "?ref": ref, "?list": array(int), "?any": any });
const numbers = struct("Numbers", "", { "?int": int, "?u32": uint32, "?u64": uint64, "?size": size });

const json = (type: Parameters<typeof visit>[0], text: string) => visit(type, parseJson(text));
const keyval = (type: Parameters<typeof visit>[0], text: string) =>
  visit(type, parseKeyval(text).value, true);

describe("JSON", () => {
  it.each<[string, unknown]>([
    ['{"kind":"a","count":1}', { kind: "a", count: 1 }],
    [
      '{"kind":"b","leaf":{"name":"x","color":"red"},"on":true}',
      { kind: "b", leaf: { name: "x", color: "red" }, on: true },
    ],
    ['{"kind":"bare"}', { kind: "bare" }],
  ])("lets %s through", (text, value) => {
    expect(json(either, text)).toEqual(value);
  });

  it.each([
    ["{}", "Parameter 'kind' is missing"],
    ["[]", "Invalid parameter type for '', expected: object"],
    ['{"kind":"c"}', "Parameter 'kind' does not accept value 'c'"],
    ['{"kind":1}', "Invalid parameter type for 'kind', expected: string"],
    ['{"kind":"a"}', "Parameter 'count' is missing"],
    ['{"kind":"a","count":"1"}', "Invalid parameter type for 'count', expected: integer"],
    ['{"kind":"a","count":1.5}', "Invalid parameter type for 'count', expected: integer"],
    ['{"kind":"a","count":9223372036854775808}', "Invalid parameter type for 'count', expected: integer"],
    ['{"kind":"a","count":1,"x":1}', "Parameter 'x' is unexpected"],
    ['{"kind":"a","on":"on","count":1}', "Invalid parameter type for 'on', expected: boolean"],
    ['{"kind":"b","leaf":1}', "Invalid parameter type for 'leaf', expected: object"],
    ['{"kind":"b","leaf":{}}', "Parameter 'leaf.name' is missing"],
    ['{"kind":"b","leaf":{"name":"x","color":"blue"}}', "Parameter 'color' does not accept value 'blue'"],
    ['{"kind":"b","leaf":{"name":"x","y":1}}', "Parameter 'leaf.y' is unexpected"],
    ['{"kind":"b","leaf":{"name":"x"},"leaves":{}}', "Invalid parameter type for 'leaves', expected: array"],
    ['{"kind":"b","leaf":{"name":"x"},"leaves":[{"name":"y"},{}]}', "Parameter 'leaves[1].name' is missing"],
  ])("refuses %s", (text, message) => {
    expect(() => json(either, text)).toThrow(new BlockError("EINVAL", message));
  });

  it("chooses among alternatives by JSON type", () => {
    expect(json(holder, '{"ref":"x"}')).toEqual({ ref: "x" });
    expect(json(holder, '{"ref":null}')).toEqual({ ref: null });
    expect(() => json(holder, '{"ref":7}')).toThrow("Invalid parameter type for 'ref', expected: Ref");
    expect(() => json(holder, '{"ref":{"kind":"a"}}')).toThrow("Parameter 'ref.count' is missing");
  });

  it("minds the width of integers", () => {
    expect(json(numbers, '{"u64":18446744073709551615,"int":-1,"u32":4294967295}')).toEqual({
      u64: 2 ** 64,
      int: -1,
      u32: 4294967295,
    });
    expect(() => json(numbers, '{"u32":4294967296}')).toThrow("Parameter 'u32' expects uint32_t");
    expect(() => json(numbers, '{"u32":-1}')).toThrow("Parameter 'u32' expects uint32_t");
    expect(() => json(numbers, '{"size":1.5}')).toThrow(
      "Invalid parameter type for 'size', expected: uint64",
    );
    expect(() => json(numbers, '{"size":"1M"}')).toThrow(
      "Invalid parameter type for 'size', expected: uint64",
    );
  });
});

describe("key=value", () => {
  it("converts strings", () => {
    expect(keyval(either, "kind=a,count=0x10,on=yes")).toEqual({ kind: "a", count: 16, on: true });
    expect(keyval(numbers, "int=-010,u64=1,size=1M")).toEqual({ int: -8, u64: 1, size: 1048576 });
    expect(keyval(holder, "list.0=1,list.1=2,ref.kind=a,ref.count=1")).toEqual({
      list: [1, 2],
      ref: { kind: "a", count: 1 },
    });
  });

  it.each([
    ["kind=a,count=x", "Parameter 'count' expects integer"],
    ["kind=a,count=1M", "Parameter 'count' expects integer"],
    ["kind=a,count=99999999999999999999", "Parameter 'count' expects integer"],
    ["kind=a,count=1,on=maybe", "Parameter 'on' expects 'on' or 'off'"],
    ["kind=a,count.x=1", "Parameters 'count.*' are unexpected"],
    ["kind=b,leaf=x", "Invalid parameter type for 'leaf', expected: object"],
    ["kind=b,leaf.name=x,leaves.0.name=y,leaves.1.color=red", "Parameter 'leaves.1.name' is missing"],
  ])("refuses %s", (text, message) => {
    expect(() => keyval(either, text)).toThrow(new BlockError("EINVAL", message));
  });

  it("refuses what is no size", () => {
    expect(() => keyval(numbers, "size=1Q")).toThrow("Parameter 'size' expects size");
  });
});
