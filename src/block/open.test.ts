import { describe, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { silentLogger } from "../base/logger.ts";
import type { DriverHost } from "./driver.ts";
import { Graph } from "./graph.ts";
import { backingOptions, resolveBackingFile } from "./link-options.ts";
import type { NodeOptions } from "./node-options.ts";
import { type DriverFactory, NodeOpener } from "./open.ts";
import { ALL_PERMISSIONS } from "./permissions.ts";
import { ArrayDriver } from "./testing/array-driver.ts";

interface Disk {
  readonly backing?: string;
  readonly format?: string;
}

/** A host with files of that content, and the drivers "file" and "array" (an image format) for them. */
function host(disks: Record<string, Disk>) {
  const graph = new Graph();
  const open: string[] = [];
  const opened: string[] = [];
  let failAt = Number.POSITIVE_INFINITY;
  const enter = (what: string) => {
    if (failAt-- === 0) throw new BlockError("EIO", `injected fault: ${what}`);
    open.push(what);
    opened.push(what);
  };
  class Tracked extends ArrayDriver {
    readonly what: string;
    constructor(host: DriverHost, what: string, options: ConstructorParameters<typeof ArrayDriver>[1]) {
      super(host, options);
      this.what = what;
    }
    override async close(): Promise<void> {
      open.splice(open.indexOf(this.what), 1);
      await super.close();
    }
  }
  const file: DriverFactory = {
    driverName: "file",
    leaf: true,
    filename: (options) => String(options["filename"]),
    async open(node, options, { readOnly }) {
      const filename = String(options["filename"]);
      if (disks[filename] === undefined) {
        throw new BlockError("ENOENT", `Could not open '${filename}': No such file or directory`);
      }
      const what = `${readOnly ? "r" : "rw"} ${filename}`;
      enter(what);
      return new Tracked(node, what, { size: 4096 });
    },
  };
  const array: DriverFactory = {
    driverName: "array",
    leaf: false,
    async open(node, _options, _context) {
      const filename = node.file!.filename;
      const disk = disks[filename]!;
      enter(`image ${filename}`);
      return new Tracked(node, `image ${filename}`, {
        size: 4096,
        ...(disk.backing === undefined ? {} : { backingFile: disk.backing }),
        ...(disk.format === undefined ? {} : { backingFormat: disk.format }),
      });
    },
  };
  const opener = new NodeOpener(graph, [file, array], silentLogger);
  return {
    graph,
    opener,
    open,
    opened,
    failAt: (at: number) => {
      failAt = at;
    },
  };
}

function image(filename: string, more: Partial<NodeOptions> = {}): NodeOptions {
  return { driver: "array", file: { driver: "file", filename }, ...more };
}

const CHAIN = {
  "/d/A.img": {},
  "/d/B.img": { backing: "A.img", format: "array" },
  "/d/C.img": { backing: "B.img", format: "array" },
};

describe("a chain", () => {
  it("opens from its top, the backing images read-only, by the links alone", async () => {
    const { opener, open } = host(CHAIN);
    const top = await opener.open(image("/d/C.img", { "node-name": "top" }));
    expect([top.name, top.filename, top.readOnly]).toEqual(["top", "/d/C.img", false]);
    expect([top.backing!.filename, top.backing!.readOnly]).toEqual(["/d/B.img", true]);
    expect(top.backing!.backing!.filename).toBe("/d/A.img");
    expect(open).toEqual([
      "rw /d/C.img",
      "image /d/C.img",
      "r /d/B.img",
      "image /d/B.img",
      "r /d/A.img",
      "image /d/A.img",
    ]);
    await opener.closeUnused(top);
    expect(open).toEqual([]);
  });

  it("stops where the options say so, or takes the node that they name", async () => {
    const { opener, graph } = host(CHAIN);
    const alone = await opener.open(image("/d/C.img", { backing: null }));
    expect(alone.backing).toBeUndefined();
    const base = await opener.open(image("/d/A.img", { "node-name": "base", "read-only": true }));
    const held = graph.use(base, { user: "the monitor", role: "", needs: 0, shares: ALL_PERMISSIONS });
    const top = await opener.open(image("/d/B.img", { backing: "base" }));
    expect(top.backing).toBe(base);
    await opener.closeUnused(top);
    expect(graph.find("base")).toBe(base);
    await graph.release(held);
    expect(graph.find("base")).toBeUndefined();
  });

  it("takes from options what they state, and the rest from the link", async () => {
    const { opener } = host({ ...CHAIN, "/d/X.img": { backing: "A.img" } });
    const top = await opener.open(image("/d/X.img", { backing: { driver: "array", "node-name": "below" } }));
    expect([top.backing!.name, top.backing!.filename]).toEqual(["below", "/d/A.img"]);
  });

  it("takes a file node by its name, and leaves it open for its owner", async () => {
    const { opener, graph, open } = host(CHAIN);
    const file = await opener.open({ driver: "file", filename: "/d/A.img", "node-name": "f" });
    const held = graph.use(file, { user: "the monitor", role: "", needs: 0, shares: ALL_PERMISSIONS });
    const node = await opener.open({ driver: "array", file: "f" });
    expect(node.filename).toBe("/d/A.img");
    await opener.closeUnused(node);
    expect(open).toEqual(["rw /d/A.img"]);
    await graph.release(held);
    expect(open).toEqual([]);
  });
});

describe("a bad link", () => {
  it.each([
    ["to itself", { "/d/C.img": { backing: "C.img", format: "array" } }],
    ["to itself by another spelling", { "/d/C.img": { backing: "../d/./C.img", format: "array" } }],
    [
      "in a circle",
      {
        "/d/C.img": { backing: "B.img", format: "array" },
        "/d/B.img": { backing: "A.img", format: "array" },
        "/d/A.img": { backing: "/d/C.img", format: "array" },
        "/d/../d/./C.img": {},
      },
    ],
  ])("%s is a cycle", async (_where, disks) => {
    const { opener, open, graph } = host(disks);
    await expect(opener.open(image("/d/C.img"))).rejects.toThrow("the chain has a cycle");
    expect([open, [...graph.nodes]]).toEqual([[], []]);
  });

  it("without a format is refused, with the way to state it", async () => {
    const { opener, open } = host({ ...CHAIN, "/d/C.img": { backing: "B.img" } });
    await expect(opener.open(image("/d/C.img"))).rejects.toThrow(
      "Could not open backing file: the format of backing file 'B.img' is not stated in " +
        "'/d/C.img', and it is not guessed: state it with 'qemu-img rebase -u -b B.img -F FORMAT /d/C.img'",
    );
    expect(open).toEqual([]);
  });

  it("to a missing file names both images", async () => {
    const { opener, open } = host({ "/d/C.img": { backing: "gone.img", format: "array" } });
    await expect(opener.open(image("/d/C.img"))).rejects.toThrow(
      "Could not open backing file: Could not open '/d/gone.img': No such file or directory",
    );
    expect(open).toEqual([]);
  });

  it("to an unknown driver or protocol says which", async () => {
    const unknown = host({ "/d/C.img": { backing: "B.img", format: "vmdk" } });
    await expect(unknown.opener.open(image("/d/C.img"))).rejects.toThrow("Unknown driver 'vmdk'");
    const remote = host({ "/d/C.img": { backing: "nbd://host/x", format: "array" } });
    await expect(remote.opener.open(image("/d/C.img"))).rejects.toThrow("Unknown protocol 'nbd'");
    expect([...unknown.open, ...remote.open]).toEqual([]);
  });

  it("chain longer than the limit is refused, and nothing stays open", async () => {
    const disks: Record<string, Disk> = {};
    for (let i = 0; i < 300; i++) disks[`/d/${i}`] = { backing: `${i + 1}`, format: "array" };
    const { opener, open } = host(disks);
    await expect(opener.open(image("/d/0"))).rejects.toThrow("more than 256 images");
    expect(open).toEqual([]);
  });
});

describe("on an error", () => {
  it("at any step nothing stays open, claimed or reserved", async () => {
    for (let at = 0; at < 6; at++) {
      const { opener, graph, open, failAt } = host(CHAIN);
      failAt(at);
      const options = image("/d/C.img", {
        "node-name": "top",
        file: { driver: "file", filename: "/d/C.img", "node-name": "f" },
      });
      await expect(opener.open(options)).rejects.toThrow("injected fault");
      expect([open, [...graph.nodes]]).toEqual([[], []]);
      const again = await opener.open(options);
      expect([again.name, again.file!.name]).toEqual(["top", "f"]);
    }
  });

  it("of a name that is taken nothing was opened", async () => {
    const { opener, opened } = host(CHAIN);
    await opener.open(image("/d/A.img", { "node-name": "A" }));
    const before = opened.length;
    await expect(opener.open(image("/d/B.img", { "node-name": "A" }))).rejects.toThrow("Duplicate nodes");
    expect(opened).toHaveLength(before);
  });

  it.each([
    [{ driver: "nope" }, "Unknown driver 'nope'"],
    [{ driver: "array" }, 'A block device must be specified for "file"'],
    [{ driver: "array", file: "none" }, "Cannot find device='none' nor node-name='none'"],
    [image("/d/A.img", { backing: "none" }), "Cannot find device='none' nor node-name='none'"],
  ])("%j: %s", async (options, words) => {
    const { opener, open } = host(CHAIN);
    await expect(opener.open(options as NodeOptions)).rejects.toThrow(words);
    expect(open).toEqual([]);
  });

  it("with a backing node that somebody writes, both stay what they were", async () => {
    const { opener, graph, open } = host(CHAIN);
    const base = await opener.open(image("/d/A.img", { "node-name": "base" }));
    graph.use(base, { user: "an unnamed block device", role: "root", needs: 3, shares: ALL_PERMISSIONS });
    const before = [...open];
    await expect(opener.open(image("/d/B.img", { backing: "base" }))).rejects.toThrow("Permission conflict");
    expect(open).toEqual(before);
    expect(base.claims.size).toBe(1);
  });
});

describe("names in links", () => {
  it.each([
    ["/d/C.img", "B.img", "/d/B.img"],
    ["/d/C.img", "../e/B.img", "/e/B.img"],
    ["/d/C.img", "/x/B.img", "/x/B.img"],
    ["/d/C.img", "file:B.img", "/d/B.img"],
    ["/d/C.img", "./a:b.img", "/d/a:b.img"],
    ["d/C.img", "B.img", "d/B.img"],
    ["C.img", "B.img", "B.img"],
  ])("of '%s', '%s' is '%s'", (overlay, link, resolved) => {
    expect(resolveBackingFile(overlay, link)).toBe(resolved);
  });

  it("without a name", () => {
    expect(() => resolveBackingFile("/d/C.img", "file:")).toThrow(
      "backing file 'file:' of '/d/C.img' has no name",
    );
  });

  it.each([
    ['json:{"driver":"array","file":{"driver":"file","filename":"/x"}}', undefined, image("/x")],
    ['json:{"driver":"array","file.driver":"file","file.filename":"/x"}', "array", image("/x")],
    [
      'json:{"file.filename":"/x","file":{"driver":"file"}}',
      "array",
      { driver: "array", file: { driver: "file" } },
    ],
    ['json:{"driver":"file","filename":"/x"}', "array", image("/x")],
    ['json:{"driver":"file","filename":"/x"}', "file", { driver: "file", filename: "/x" }],
  ])("%s with format %s", (link, format, options) => {
    expect(backingOptions("/d/C.img", link, format)).toEqual(options);
  });

  it.each([
    ["json:{", "Could not parse the JSON options"],
    ["json:7", "Invalid JSON object given"],
    ["json:[]", "Invalid JSON object given"],
    ["json:null", "Invalid JSON object given"],
    ["json:{}", "names no driver"],
    ['json:{"driver":7}', "names no driver"],
  ])("'%s' is refused: %s", (link, words) => {
    expect(() => backingOptions("/d/C.img", link, undefined)).toThrow(words);
  });

  it("do not reach into JavaScript's own objects", () => {
    backingOptions(
      "/d/C.img",
      'json:{"driver":"a","__proto__.evil":1,"constructor.prototype.evil":1}',
      undefined,
    );
    expect(({} as Record<string, unknown>)["evil"]).toBeUndefined();
    const options = backingOptions("/d/C.img", 'json:{"__proto__":{"driver":"a"}}', "array");
    expect(options.driver).toBe("array");
  });
});
