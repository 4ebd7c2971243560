import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { KiB, MiB } from "../base/units.ts";
import { JSON_BYTES_MAX, JSON_DEPTH_MAX, JsonStream, parseJson } from "./json-stream.ts";
import { JsonFloat, type JsonValue } from "./json-value.ts";
import { writeJson } from "./json-writer.ts";

type Heard = { value: JsonValue } | { error: string };

function hear(pieces: readonly Buffer[], ended = false): Heard[] {
  const heard: Heard[] = [];
  const stream = new JsonStream({
    value: (value) => heard.push({ value }),
    error: (error) => heard.push({ error: error.message }),
  });
  for (const piece of pieces) stream.feed(piece);
  if (ended) stream.end();
  return heard;
}

function hearText(text: string): Heard[] {
  return hear([Buffer.from(text, "latin1")]);
}

const parseError = (what: string) => ({ error: `JSON parse error, ${what}` });

describe("what the reference says of broken JSON", () => {
  it.each<[string, Heard[]]>([
    ["}", [parseError("expecting value")]],
    ["{]", [parseError("expecting value")]],
    ['{"a":}', [parseError("expecting value")]],
    ['{"a"}', [parseError("missing : in object pair")]],
    ['{"a" 1}', [parseError("missing : in object pair")]],
    ['{"a":1,}', [parseError("expecting value")]],
    ["{,}", [parseError("expecting value")]],
    ["[1,]", [parseError("expecting value")]],
    ["[1 2]", [parseError("expected separator in list")]],
    ['{"a":1 "b":2}', [parseError("expected separator in dict")]],
    ["{1:2}", [parseError("key is not a string in object")]],
    ["nope\n", [parseError("invalid keyword 'nope'")]],
    ['{"a":1,"a":2}', [parseError("duplicate key")]],
    ['"x\\q"', [parseError("invalid escape sequence in string")]],
    ['"x\\u12"', [parseError('\\u12" is not a valid Unicode character')]],
    ['"a\\ud800"', [parseError("\\ud800 is not a valid Unicode character")]],
    ['"\xed\xa0\x80"', [parseError("invalid UTF-8 sequence in string")]],
    ['{"e":"a\x01"}', [parseError("stray '\"a\x01'"), parseError("expecting value")]],
    ['{"a":01}', [parseError("stray '01'"), parseError("expecting value")]],
    ["\xff", [parseError("stray '\ufffd'")]],
    ["1.\n", [parseError("stray '1.\n'")]],
    ["%s", [parseError("stray '%'")]],
    ['"abc\n"', [parseError("stray '\"abc\n'")]],
  ])("%j", (text, heard) => {
    expect(hearText(text)).toEqual(heard);
    // Whatever came, the next command is understood.
    expect(hearText(`${text}\n{"execute":"x"}`).at(-1)).toEqual({ value: { execute: "x" } });
  });
});

describe("QEMU's dialect", () => {
  it.each<[string, JsonValue]>([
    ["'it\\'s'", "it's"],
    ["{'a':[true,false,null]}", { a: [true, false, null] }],
    ["9007199254740991", Number.MAX_SAFE_INTEGER],
    ["9223372036854775807", 9223372036854775807n],
    ["18446744073709551615", 18446744073709551615n],
    ["-9223372036854775808", -9223372036854775808n],
    ["18446744073709551616", new JsonFloat("18446744073709551616")],
    ["-9223372036854775809", new JsonFloat("-9223372036854775809")],
    ["-0", 0],
    ["1e3", new JsonFloat("1e3")],
    ['"\\u00e9\\ud83d\\ude00\\u0000"', "é😀\0"],
    ['{"__proto__":1}', JSON.parse('{"__proto__":1}')],
  ])("%s", (text, value) => {
    expect(parseJson(text)).toEqual(value);
  });

  it("reads several values of one piece, and numbers only when they have ended", () => {
    expect(hearText('{"a":1}{"b":2} 3 4')).toEqual([{ value: { a: 1 } }, { value: { b: 2 } }, { value: 3 }]);
    expect(hear([Buffer.from("12"), Buffer.from("34 ")])).toEqual([{ value: 1234 }]);
    expect(hear([Buffer.from("1234")], true)).toEqual([{ value: 1234 }]);
  });

  it("tells a text that ends too early", () => {
    expect(() => parseJson('{"driver":"file"')).toThrow("JSON parse error, premature EOI");
    expect(() => parseJson('"abc')).toThrow("JSON parse error, stray '\"abc'");
    expect(() => parseJson("{} {}")).toThrow("JSON parse error, there is more than one value");
    // One error, not one for each byte: that filled memory with a file of zeros (QMP fuzz, case 7016711).
    expect(() => parseJson("\0".repeat(2 ** 22))).toThrow("JSON parse error, stray '\0'");
  });
});

describe("limits", () => {
  it("takes the allowed depth and refuses one more", () => {
    const deep = "[".repeat(JSON_DEPTH_MAX) + "]".repeat(JSON_DEPTH_MAX);
    expect(hearText(deep)).toHaveLength(1);
    expect(hearText("[".repeat(JSON_DEPTH_MAX + 1))).toEqual([
      { error: "JSON nesting depth limit exceeded" },
    ]);
  });

  it("refuses a token that does not end, and reads what follows", () => {
    const piece = Buffer.alloc(1024 * 1024, "a");
    const pieces = [
      Buffer.from('"'),
      ...Array.from({ length: JSON_BYTES_MAX / piece.length + 1 }, () => piece),
    ];
    const heard = hear([...pieces, Buffer.from('\n{"a":1}')]);
    expect(heard[0]).toEqual({ error: "JSON token size limit exceeded" });
    expect(heard.at(-1)).toEqual({ value: { a: 1 } });
  });

  it("refuses it as well where all of it comes at once", () => {
    const whole = Buffer.concat([Buffer.from('"'), Buffer.alloc(JSON_BYTES_MAX, "a"), Buffer.from('"\n[7]')]);
    const heard = hear([whole]);
    expect(heard[0]).toEqual({ error: "JSON token size limit exceeded" });
    expect(heard).toContainEqual({ value: [7] });
  });

  it("quotes of a text no more than the reference", () => {
    const message = (heard: Heard[]) => (heard[0] as { error: string }).error;
    const keyword = message(hear([Buffer.from(`${"x".repeat(100_000)}\n`)]));
    expect(keyword).toBe(
      `JSON parse error, invalid keyword '${"x".repeat(1023 - "invalid keyword '".length)}`,
    );
    const stray = message(hear([Buffer.from(`"${"y".repeat(100_000)}\n`)]));
    expect(stray).toBe(`JSON parse error, stray '"${"y".repeat(1023 - "stray '\"".length)}`);
  });

  it("keeps the bytes of tokens apart, whatever came before in pieces", () => {
    const long = "l".repeat(200_000);
    const pieces = [`["${long}`, `${long}"`, ',"sh', 'ort"', `,"${long}`, "\x01", '\n["', 'e"]'];
    expect(hear(pieces.map((piece) => Buffer.from(piece)))).toEqual([
      { error: expect.stringMatching(/^JSON parse error, stray '"l+$/) },
      { value: ["e"] },
    ]);
    expect(
      hear(
        pieces
          .slice(0, 4)
          .concat("]")
          .map((piece) => Buffer.from(piece)),
      ),
    ).toEqual([{ value: [long + long, "short"] }]);
  });
});

describe("memory", () => {
  it.each(["1", "\\n", "a"])("a long token of %j costs little more than its bytes", (unit) => {
    const piece = Buffer.from(unit.repeat((64 * KiB) / unit.length));
    const stream = new JsonStream({ value: () => {}, error: () => {} });
    stream.feed(Buffer.from(unit === "\\n" ? '"' : unit));
    const before = process.memoryUsage().heapUsed;
    for (let pieces = 0; pieces < 256; pieces++) stream.feed(piece);
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(128 * MiB);
  });
});

describe("any input", () => {
  it("gives the same however it is cut into pieces", () => {
    const input = fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes));
    const jsonLike = fc
      .array(
        fc.constantFrom('"', "'", "{", "}", "[", "]", ",", ":", "\\", "1", "-", ".", "e", "a", "\n", "\xff"),
      )
      .map((parts) => Buffer.from(parts.join(""), "latin1"));
    fc.assert(
      fc.property(fc.oneof(input, jsonLike), fc.array(fc.nat(10)), (bytes, cuts) => {
        const pieces: Buffer[] = [];
        let at = 0;
        for (const cut of cuts) {
          pieces.push(bytes.subarray(at, at + cut));
          at += cut;
        }
        pieces.push(bytes.subarray(at));
        expect(hear(pieces)).toEqual(hear([bytes]));
      }),
    );
  });

  it("understands a command after any garbage that leaves no bracket or string open", () => {
    const garbage = fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes));
    fc.assert(
      fc.property(garbage, (bytes) => {
        // A byte that no text has ends whatever was open; the line end ends the recovery.
        const heard = hear([bytes, Buffer.from("\xff\n", "latin1"), Buffer.from('{"execute":"x"}')]);
        expect(heard.at(-1)).toEqual({ value: { execute: "x" } });
      }),
    );
  });

  it("reads what it wrote", () => {
    const text = fc.string({ unit: "grapheme" });
    const values = [text, fc.maxSafeInteger(), fc.boolean(), fc.constant(null)];
    fc.assert(
      fc.property(fc.anything({ values, key: text, maxDepth: 4 }), fc.boolean(), (value, pretty) => {
        expect(parseJson(writeJson(value, pretty))).toEqual(value);
      }),
    );
  });
});
