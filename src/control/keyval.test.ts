import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseKeyval, parseOption } from "./keyval.ts";

describe("key=value", () => {
  it.each<[string, unknown]>([
    ["", {}],
    ["a=b", { a: "b" }],
    ["a=b,", { a: "b" }],
    ["a=b,,c", { a: "b,c" }],
    ["a=,b=", { a: "", b: "" }],
    ["a=b=c", { a: "b=c" }],
    ["a=,,,,", { a: ",," }],
    ["a=1,a=2", { a: "2" }],
    ["file.driver=file,file.filename=x", { file: { driver: "file", filename: "x" } }],
    ["a.1=y,a.0=x", { a: ["x", "y"] }],
    ["a.0.b=x,a.1.b=y", { a: [{ b: "x" }, { b: "y" }] }],
    ["x-member=1", { "x-member": "1" }],
  ])("%s", (text, value) => {
    expect(parseKeyval(text).value).toEqual(value);
  });

  it("knows an implied name at the front only", () => {
    expect(parseKeyval("qcow2,node-name=n", "driver").value).toEqual({ driver: "qcow2", "node-name": "n" });
    expect(() => parseKeyval("a=1,qcow2", "driver")).toThrow("Expected '=' after parameter 'qcow2'");
    expect(() => parseKeyval("qcow2")).toThrow("Expected '=' after parameter 'qcow2'");
  });

  it.each([
    ["a..b=1", "Invalid parameter 'a..b'"],
    ["=x", "Invalid parameter ''"],
    ["1a=x", "Invalid parameter '1a'"],
    ["a.b=1,a=2", "Parameters 'a.*' used inconsistently"],
    ["a=2,a.b=1", "Parameters 'a.*' used inconsistently"],
    ["a.0=1,a.x=2", "Parameters 'a.*' used inconsistently"],
    ["a.0=1,a.2=3", "Parameter 'a.1' missing"],
    ["a.99999999999999999999=1", "Parameter 'a.0' missing"],
    ["a.b.0=1,a.b.2=3", "Parameter 'a.b.1' missing"],
    ["a=1,read-only", "Expected '=' after parameter 'read-only'"],
    [`${"a".repeat(128)}=1`, `Parameter '${"a".repeat(128)}' is too long`],
    [`b.${"a".repeat(128)}=1`, `Parameter fragment '${"a".repeat(128)}' is too long`],
  ])("refuses %s", (text, message) => {
    expect(() => parseKeyval(text)).toThrow(message);
  });

  it("tells a call for help", () => {
    expect(parseKeyval("iothread,help", "qom-type")).toEqual({
      value: { "qom-type": "iothread" },
      help: true,
    });
    expect(() => parseOption("help", "driver")).toThrow("Help is not available for this option");
  });

  it("gives back every value that was escaped", () => {
    fc.assert(
      fc.property(fc.array(fc.string(), { maxLength: 5 }), (values) => {
        const text = values.map((value, index) => `k${index}=${value.replaceAll(",", ",,")}`).join(",");
        expect(Object.values(parseKeyval(text).value)).toEqual(values);
      }),
    );
  });
});

describe("JSON", () => {
  it("is taken where the text begins with a brace", () => {
    expect(parseOption('{"driver":"file"}', "driver")).toEqual({
      value: { driver: "file" },
      isKeyval: false,
    });
    expect(() => parseOption('{"driver":"file"', "driver")).toThrow("JSON parse error, premature EOI");
  });
});
