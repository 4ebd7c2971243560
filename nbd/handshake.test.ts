import { describe, expect, it } from "vitest";
import type { ExportDirectory, NbdExport } from "./export.ts";
import { Handshake, OPTION_BYTES_MAX, OPTIONS_MAX, type Outcome } from "./handshake.ts";
import { MemoryBackend } from "./testing/memory-backend.ts";
import { ACK, concat, OPTS, option, optionReply, repError, str, u16, u32, u64 } from "./testing/peer.ts";

const GREETING = concat(Buffer.from("NBDMAGIC"), Buffer.from("IHAVEOPT"), u16(3));
const [UNSUP, INVALID, UNKNOWN, SHUTDOWN, TOO_BIG, EXT_REQD] = [1, 3, 6, 7, 9, 10].map(repError);
const FLAGS_SIMPLE = 0b110101101101; // fast zero, cache, multi conn, zeroes, trim, FUA, flush, has flags
const DF = 1 << 7;
const PAYLOAD = 1 << 12;

const disk: NbdExport = {
  name: "disk",
  backend: new MemoryBackend({ size: 1 << 20, description: "a test disk" }),
};
const readOnly: NbdExport = {
  name: "ro",
  backend: new MemoryBackend({ size: 512, readOnly: true, multiConn: false }),
};

function directory(closing = false): ExportDirectory {
  const all = [disk, readOnly];
  return { closing, list: () => all, find: (name) => all.find((one) => one.name === (name || "disk")) };
}

/**
 * Feeds a whole conversation in steps of `step` bytes; what came back after the greeting, and the outcome.
 */
function talk(input: Buffer, { step = input.length, exports = directory() } = {}) {
  const handshake = new Handshake(exports);
  let at = 0;
  while (at < input.length && handshake.outcome === undefined) {
    at = handshake.consume(input, at, Math.min(input.length, at + step));
  }
  const output = Buffer.concat(handshake.replies);
  expect(output.subarray(0, GREETING.length)).toEqual(GREETING);
  return { output: output.subarray(GREETING.length), outcome: handshake.outcome, consumed: at };
}

/** The same with the usual client flags in front. */
function options(...parts: Buffer[]) {
  return talk(concat(u32(3), ...parts));
}

/** The reply types in order. */
function replyTypes(output: Buffer): number[] {
  const types: number[] = [];
  for (let at = 0; at < output.length; at += 20 + output.readUInt32BE(at + 16)) {
    expect(output.readBigUInt64BE(at)).toBe(0x3e889045565a9n);
    types.push(output.readUInt32BE(at + 12));
  }
  return types;
}

/** The text of the last reply, which must be valid UTF-8. */
function lastText(output: Buffer): string {
  let last = Buffer.alloc(0) as Buffer;
  for (let at = 0; at < output.length; at += 20 + output.readUInt32BE(at + 16)) {
    last = output.subarray(at + 20, at + 20 + output.readUInt32BE(at + 16));
  }
  return new TextDecoder("utf-8", { fatal: true }).decode(last);
}

/** What an outcome that entered an export agreed on. */
function entry(outcome: Outcome | undefined) {
  if (outcome?.kind !== "enter") throw new Error(`no export was entered: ${JSON.stringify(outcome)}`);
  return { name: outcome.offered.name, ...outcome.agreement };
}

const go = (name: string, ...asked: number[]) =>
  option(OPTS.GO, str(name), u16(asked.length), ...asked.map(u16));
const infoExport = (code: number, size: number, flags: number) =>
  optionReply(code, 3, u16(0), u64(size), u16(flags));

describe("client flags", () => {
  it("closes on an unknown bit", () => {
    expect(talk(u32(4)).outcome?.kind).toBe("close");
    expect(talk(u32(0x80000003)).outcome?.kind).toBe("close");
  });

  it("serves EXPORT_NAME without the fixed-newstyle bit, and nothing else", () => {
    expect(talk(concat(u32(0), option(OPTS.EXPORT_NAME, Buffer.from("disk")))).outcome?.kind).toBe("enter");
    expect(talk(concat(u32(0), option(OPTS.LIST))).outcome?.kind).toBe("close");
  });
});

describe("EXPORT_NAME", () => {
  it("answers size, flags and 124 zero bytes", () => {
    const { output, outcome } = talk(concat(u32(1), option(OPTS.EXPORT_NAME, Buffer.from("disk"))));
    expect(output).toEqual(concat(u64(1 << 20), u16(FLAGS_SIMPLE), Buffer.alloc(124)));
    expect(outcome?.kind).toBe("enter");
  });

  it("leaves the zeroes out when NO_ZEROES was agreed on", () => {
    const { output } = options(option(OPTS.EXPORT_NAME, Buffer.from("")));
    expect(output).toEqual(concat(u64(1 << 20), u16(FLAGS_SIMPLE)));
  });

  it("closes on a missing export, a long name, one that is no text, and after extended headers", () => {
    for (const name of ["missing", "x".repeat(4097), "\xff\xfe", "di\0sk"]) {
      const { output, outcome } = options(option(OPTS.EXPORT_NAME, Buffer.from(name, "latin1")));
      expect(output.length).toBe(0);
      expect(outcome?.kind).toBe("close");
    }
    const { outcome } = options(option(OPTS.EXTENDED), option(OPTS.EXPORT_NAME, Buffer.from("disk")));
    expect(outcome?.kind).toBe("close");
  });
});

describe("unknown and broken options", () => {
  it("answers each unknown option ERR_UNSUP, skips its data, parses the next one", () => {
    for (const code of [0, 4, 12, 99, 0xffffffff]) {
      const { output } = options(option(code, Buffer.alloc(100_000, 7)), option(OPTS.LIST));
      expect(replyTypes(output)).toEqual([UNSUP, 2, 2, ACK]);
    }
  });

  it("closes on a wrong option magic, also when it is a request's", () => {
    const wrong = option(OPTS.LIST);
    wrong[0] = 0;
    expect(options(wrong).outcome?.kind).toBe("close");
    expect(options(u32(0x25609513), Buffer.alloc(24)).outcome?.kind).toBe("close");
  });

  it("does not keep the data of an option that claims 4 GiB, whatever the option", () => {
    for (const code of [OPTS.GO, OPTS.SET_META, OPTS.LIST, 77]) {
      const handshake = new Handshake(directory());
      const head = concat(u32(3), Buffer.from("IHAVEOPT"), u32(code), u32(0xffffffff));
      for (let at = 0; at < head.length; ) at = handshake.consume(head, at, head.length);
      const megabyte = Buffer.alloc(1 << 20);
      const before = process.memoryUsage().arrayBuffers;
      for (let i = 0; i < 4095; i++) handshake.consume(megabyte, 0, megabyte.length);
      expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(8 << 20);
      expect(handshake.replies.length).toBe(1);
      handshake.consume(megabyte, 0, megabyte.length - 1);
      expect(handshake.replies.length).toBe(2);
      expect(handshake.outcome).toBeUndefined();
    }
  });

  it("answers known options above the kept size with ERR_TOO_BIG and stays in step", () => {
    const { output } = options(option(OPTS.GO, Buffer.alloc(OPTION_BYTES_MAX + 1)), option(OPTS.STRUCTURED));
    expect(replyTypes(output)).toEqual([TOO_BIG, ACK]);
  });

  it("takes 500 options in a row, but not endlessly many", () => {
    const { output, outcome } = options(...Array.from({ length: 500 }, () => option(99)), go("disk"));
    expect(outcome?.kind).toBe("enter");
    expect(replyTypes(output).length).toBe(502);
    const endless = options(...Array.from({ length: OPTIONS_MAX + 1 }, () => option(99)));
    expect(endless.outcome?.kind).toBe("close");
  });

  it("refuses STARTTLS with an error that is not TLS_REQD", () => {
    expect(replyTypes(options(option(OPTS.STARTTLS)).output)).toEqual([UNSUP]);
  });
});

describe("ABORT and LIST", () => {
  it("acknowledges ABORT, also with data, and closes", () => {
    for (const data of [Buffer.alloc(0), Buffer.alloc(9)]) {
      const { output, outcome } = options(option(OPTS.ABORT, data));
      expect(output).toEqual(optionReply(OPTS.ABORT, ACK));
      expect(outcome?.kind).toBe("close");
    }
  });

  it("lists every export, then ACK; refuses data", () => {
    expect(options(option(OPTS.LIST)).output).toEqual(
      concat(
        optionReply(OPTS.LIST, 2, str("disk"), Buffer.from("a test disk")),
        optionReply(OPTS.LIST, 2, str("ro")),
        optionReply(OPTS.LIST, ACK),
      ),
    );
    expect(replyTypes(options(option(OPTS.LIST, u32(0)), option(OPTS.LIST)).output)).toEqual([
      INVALID,
      2,
      2,
      ACK,
    ]);
  });
});

describe("INFO and GO", () => {
  it("sends what was asked for and ignores unknown information types", () => {
    const { output, outcome } = options(go("disk", 1, 2, 3, 77, 0));
    expect(output).toEqual(
      concat(
        infoExport(OPTS.GO, 1 << 20, FLAGS_SIMPLE),
        optionReply(OPTS.GO, 3, u16(1), Buffer.from("disk")),
        optionReply(OPTS.GO, 3, u16(2), Buffer.from("a test disk")),
        optionReply(OPTS.GO, 3, u16(3), u32(1), u32(4096), u32(32 << 20)),
        optionReply(OPTS.GO, ACK),
      ),
    );
    expect(entry(outcome)).toEqual({ name: "disk", style: 0, contexts: [] });
  });

  it("INFO then GO agree, and INFO stays in the handshake", () => {
    const info = options(option(OPTS.INFO, str("ro"), u16(0)));
    expect(info.outcome).toBeUndefined();
    expect(info.output).toEqual(
      concat(infoExport(OPTS.INFO, 512, 0b10000001111), optionReply(OPTS.INFO, ACK)),
    );
    expect(options(go("ro")).output).toEqual(
      concat(infoExport(OPTS.GO, 512, 0b10000001111), optionReply(OPTS.GO, ACK)),
    );
  });

  it("advertises DF with structured replies only, and status payloads with extended headers only", () => {
    const tail = (style: number) =>
      options(option(style), go("disk"))
        .output.subarray(20)
        .subarray(0, 20 + 12);
    expect(tail(OPTS.STRUCTURED)).toEqual(infoExport(OPTS.GO, 1 << 20, FLAGS_SIMPLE | DF));
    expect(tail(OPTS.EXTENDED)).toEqual(infoExport(OPTS.GO, 1 << 20, FLAGS_SIMPLE | DF | PAYLOAD));
  });

  it("answers a missing export ERR_UNKNOWN without any INFO, and a good GO may follow", () => {
    const { output, outcome } = options(go("nope"), go("disk"));
    expect(replyTypes(output)).toEqual([UNKNOWN, 3, ACK]);
    expect(outcome?.kind).toBe("enter");
  });

  it("says that it shuts down", () => {
    const { output } = talk(concat(u32(3), go("disk")), { exports: directory(true) });
    expect(replyTypes(output)).toEqual([SHUTDOWN]);
  });

  it.each([
    ["no data", []],
    ["half a length", [u16(0)]],
    ["a name past the data", [u32(5), Buffer.from("disk")]],
    ["a length of 2^31", [u32(2 ** 31), Buffer.from("disk"), u16(0)]],
    ["a length of 2^32-1", [u32(2 ** 32 - 1), Buffer.from("disk"), u16(0)]],
    ["no count", [str("disk")]],
    ["fewer items than counted", [str("disk"), u16(2), u16(0)]],
    ["half an item", [str("disk"), u16(1), Buffer.from([0])]],
    ["trailing bytes", [str("disk"), u16(1), u16(0), Buffer.from([0])]],
  ])("answers %s with ERR_INVALID and goes on", (_, data) => {
    for (const code of [OPTS.INFO, OPTS.GO]) {
      const { output, outcome } = options(option(code, ...data), go("disk"));
      expect(replyTypes(output)).toEqual([INVALID, 3, ACK]);
      expect(outcome?.kind).toBe("enter");
    }
  });

  it("answers odd names with text that is UTF-8 and echoes nothing of them", () => {
    for (const name of [Buffer.from("a\0b"), Buffer.from([0xff, 0xfe]), Buffer.alloc(60_000, 0x61)]) {
      const { output, outcome } = options(option(OPTS.GO, str(name), u16(0)));
      expect([INVALID, UNKNOWN]).toContain(replyTypes(output)[0]);
      expect(lastText(output)).not.toContain("a\0b");
      expect(outcome).toBeUndefined();
    }
  });

  it("matches names with a byte order mark as they are", () => {
    expect(replyTypes(options(go("\ufeffdisk")).output)).toEqual([UNKNOWN]);
  });
});

describe("reply styles", () => {
  it("answers a repeated agreement ERR_INVALID, STRUCTURED_REPLY after extended ERR_EXT_HEADER_REQD", () => {
    const { output } = options(
      option(OPTS.STRUCTURED),
      option(OPTS.STRUCTURED),
      option(OPTS.EXTENDED),
      option(OPTS.EXTENDED),
      option(OPTS.STRUCTURED),
    );
    expect(replyTypes(output)).toEqual([ACK, INVALID, ACK, INVALID, EXT_REQD]);
  });

  it("refuses data and is not agreed then", () => {
    const { output, outcome } = options(
      option(OPTS.STRUCTURED, u32(1)),
      option(OPTS.EXTENDED, u32(1)),
      go(""),
    );
    expect(replyTypes(output)).toEqual([INVALID, INVALID, 3, ACK]);
    expect(entry(outcome).style).toBe(0);
  });
});

describe("meta contexts", () => {
  const meta = (code: number, name: string, ...queries: (string | Buffer)[]) =>
    option(code, str(name), u32(queries.length), ...queries.map(str));
  const context = (code: number, id: number, name: string) =>
    optionReply(code, 4, u32(id), Buffer.from(name));
  const { LIST_META, SET_META, STRUCTURED } = OPTS;
  const DEPTH = "qemu:allocation-depth";

  it("lists everything without queries, a namespace for `base:`, and ignores what is unknown", () => {
    const all = concat(
      context(LIST_META, 0, "base:allocation"),
      context(LIST_META, 0, DEPTH),
      optionReply(LIST_META, ACK),
    );
    expect(options(meta(LIST_META, "disk")).output).toEqual(all);
    expect(options(meta(LIST_META, "disk", "base:", "qemu:")).output).toEqual(all);
    expect(options(meta(LIST_META, "disk", "base:")).output).toEqual(
      concat(context(LIST_META, 0, "base:allocation"), optionReply(LIST_META, ACK)),
    );
    const unknown = meta(LIST_META, "disk", "x-foo:", "base:other", "", Buffer.from([0xff]), "base");
    expect(options(unknown).output).toEqual(optionReply(LIST_META, ACK));
  });

  it("selects by full names only, each once, with distinct ids", () => {
    const { output, outcome } = options(
      option(STRUCTURED),
      meta(SET_META, "disk", DEPTH, "base:allocation", "base:allocation", "base:", DEPTH),
      go("disk"),
    );
    expect(output.subarray(20, output.length - 52)).toEqual(
      concat(
        context(SET_META, 0, "base:allocation"),
        context(SET_META, 1, DEPTH),
        optionReply(SET_META, ACK),
      ),
    );
    expect(entry(outcome).contexts).toEqual(["base:allocation", DEPTH]);
  });

  it("selects nothing for `base:` and for no queries", () => {
    for (const queries of [[], ["base:"], ["base:nope"]]) {
      const { output, outcome } = options(
        option(STRUCTURED),
        meta(SET_META, "disk", "base:allocation"),
        meta(SET_META, "disk", ...queries),
        go("disk"),
      );
      expect(replyTypes(output)).toEqual([ACK, 4, ACK, ACK, 3, ACK]);
      expect(entry(outcome).contexts).toEqual([]);
    }
  });

  it("refuses SET before structured replies with ERR_INVALID", () => {
    expect(replyTypes(options(meta(SET_META, "disk", "base:allocation")).output)).toEqual([INVALID]);
  });

  it.each([
    ["malformed", option(SET_META, str("disk"), u32(9))],
    ["for a missing export", meta(SET_META, "nope", "base:allocation")],
    ["too big", option(SET_META, Buffer.alloc(OPTION_BYTES_MAX + 1))],
  ])("drops the earlier selection when a later SET fails: %s", (_, failing) => {
    const { output, outcome } = options(
      option(STRUCTURED),
      meta(SET_META, "disk", "base:allocation"),
      failing,
      go("disk"),
    );
    expect(replyTypes(output)[3]).toBeGreaterThan(2 ** 31);
    expect(entry(outcome).contexts).toEqual([]);
  });

  it("counts a selection only for the export that is entered", () => {
    const { outcome } = options(option(STRUCTURED), meta(SET_META, "disk", "base:allocation"), go("ro"));
    expect(entry(outcome)).toEqual({ name: "ro", style: 1, contexts: [] });
    const byDefaultName = options(option(STRUCTURED), meta(SET_META, "", "base:allocation"), go("disk"));
    expect(entry(byDefaultName.outcome).contexts).toEqual(["base:allocation"]);
  });

  it.each([
    ["no count", [str("disk")]],
    ["a count past the data", [str("disk"), u32(2), str("base:")]],
    ["a count of 2^32-1", [str("disk"), u32(2 ** 32 - 1), str("base:")]],
    ["a query past the data", [str("disk"), u32(1), u32(6), Buffer.from("base:")]],
    ["a query length of 2^32-1", [str("disk"), u32(1), u32(2 ** 32 - 1), Buffer.from("base:")]],
    ["a name length of 2^31", [u32(2 ** 31), u32(1)]],
    ["bytes after the last query", [str("disk"), u32(1), str("base:"), Buffer.from([1])]],
    ["a query above 4096 bytes", [str("disk"), u32(1), str("b".repeat(4097))]],
  ])("answers %s with ERR_INVALID and stays in step", (_, data) => {
    for (const code of [LIST_META, SET_META]) {
      const { output } = options(option(STRUCTURED), option(code, ...data), option(OPTS.LIST));
      expect(replyTypes(output)).toEqual([ACK, INVALID, 2, 2, ACK]);
    }
  });

  it("takes 200 queries of 4000 bytes", () => {
    const queries = Array.from({ length: 200 }, (_, i) => `x:${i}`.padEnd(4000, "."));
    const { output } = options(option(STRUCTURED), meta(SET_META, "disk", ...queries, "base:allocation"));
    expect(replyTypes(output)).toEqual([ACK, 4, ACK]);
  });

  it("answers a missing export ERR_UNKNOWN", () => {
    for (const code of [LIST_META, SET_META]) {
      expect(replyTypes(options(option(STRUCTURED), meta(code, "nope", "base:")).output)).toEqual([
        ACK,
        UNKNOWN,
      ]);
    }
  });
});

it("answers the same whatever the pieces it arrives in", () => {
  const conversation = concat(
    u32(3),
    option(OPTS.STRUCTURED),
    option(99, Buffer.alloc(5000)),
    option(OPTS.SET_META, str("disk"), u32(1), str("base:allocation")),
    option(OPTS.LIST),
    go("nope"),
    go("disk", 1, 3),
    Buffer.from("what follows is not the handshake's"),
  );
  const whole = talk(conversation);
  for (const step of [1, 2, 3, 7, 16, 17, 4096]) {
    const pieces = talk(conversation, { step });
    expect(pieces).toEqual(whole);
  }
  expect(conversation.length - whole.consumed).toBe("what follows is not the handshake's".length);
});
