// Where images may name files: `--backing-root`, on real directories and links.

import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import type { JsonObject } from "./json-value.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image, makeRawImage } from "./testing/image-fixtures.ts";

const SIZE = 1 << 20;
let directory: string;
let daemon: Daemon | undefined;

beforeEach(() => {
  directory = realpathSync(mkdtempSync(join(tmpdir(), "roots-")));
  for (const name of ["disks", "shared", "private"]) mkdirSync(join(directory, name));
  makeRawImage(at("shared/base.img"), SIZE, true);
  makeRawImage(at("private/secret"), SIZE, true);
  makeRawImage(at("disks/near.img"), SIZE, true);
});

afterEach(async () => {
  if (daemon !== undefined) await endDaemon(daemon);
  daemon = undefined;
  rmSync(directory, { recursive: true, force: true });
});

function at(name: string): string {
  return join(directory, name);
}

function qmp(command: string, args: object): Promise<unknown> {
  return runCommand(daemon!, command, args as JsonObject);
}

function image(name: string, file: string, format = "raw"): string {
  makeQcow2Image(at(name), SIZE, { backing: { file, format } });
  return at(name);
}

/** Opens an image under a rule; `roots` are folders of the test's directory. */
async function open(filename: string, roots: readonly string[] | "anywhere"): Promise<void> {
  if (daemon !== undefined) await endDaemon(daemon);
  const given = roots === "anywhere" ? [] : roots.flatMap((root) => ["--backing-root", at(root)]);
  daemon = await startDaemon([
    ...given,
    "--blockdev",
    `qcow2,node-name=top,file.driver=file,file.filename=${filename}`,
  ]);
}

describe("a backing name", () => {
  it("may lead anywhere without the option, as in the reference", async () => {
    await open(image("disks/top", at("private/secret")), "anywhere");
    expect(daemon!.graph.get("top").backing?.filename).toBe(at("private/secret"));
  });

  it("may lead to the image's own folder and to the roots", async () => {
    await open(image("disks/top", "near.img"), ["shared"]);
    await open(image("disks/top", at("shared/base.img")), ["shared"]);
    await open(image("disks/top", "file:../shared/base.img"), ["private", "shared"]);
    expect(daemon!.graph.get("top").backing?.size).toBe(SIZE);
  });

  it("is refused elsewhere, with image, name and what to do", async () => {
    const top = image("disks/top", "../private/secret");
    await expect(open(top, ["shared"])).rejects.toThrow(
      `Could not open backing file: image '${top}' names '../private/secret' as a file below it, that is ` +
        `'${at("private/secret")}': it may name files in these directories only: '${at("disks")}', ` +
        `'${at("shared")}'. If you trust the image, allow it with --backing-root ${at("private")}`,
    );
  });

  it.each([
    ["with file:", (to: string) => `file:${to}`],
    ["by json", (to: string) => `json:{"driver":"raw","file":{"driver":"file","filename":"${to}"}}`],
    ["by json in dots", (to: string) => `json:{"driver":"raw","file.driver":"file","file.filename":"${to}"}`],
    ["by the protocol alone", (to: string) => `json:{"driver":"file","filename":"${to}"}`],
    ["through dots", (to: string) => to.replace("/private/", "/disks/../private/")],
    [
      "as a data file",
      (to: string) =>
        `json:{"driver":"qcow2","file":{"driver":"file","filename":"near.img"},` +
        `"data-file":{"driver":"file","filename":"${to}"}}`,
    ],
  ])("is refused %s", async (_, name) => {
    const refused = /may name files in these directories only|external data files are not supported/;
    await expect(open(image("disks/top", name(at("private/secret"))), ["shared"])).rejects.toThrow(refused);
  });

  it("is refused through a symbolic link of file or folder; a root may be one", async () => {
    symlinkSync(at("private/secret"), at("disks/link"));
    symlinkSync(at("private"), at("disks/folder"));
    symlinkSync(at("private"), at("other"));
    await expect(open(image("disks/top", "link"), ["shared"])).rejects.toThrow(/--backing-root/);
    await expect(open(image("disks/top", "folder/secret"), ["shared"])).rejects.toThrow(/--backing-root/);
    await open(image("disks/top", "folder/secret"), ["other"]);
  });

  it("is refused also deeper in the chain, from the folder of an image that was only linked to", async () => {
    image("shared/middle", at("private/secret"));
    image("private/middle", "secret");
    await expect(open(image("disks/top", "../shared/middle", "qcow2"), ["shared"])).rejects.toThrow(
      /image '.*shared\/middle' names '.*private\/secret'/,
    );
    await expect(open(image("disks/top", "../private/middle", "qcow2"), ["shared"])).rejects.toThrow(
      /image '.*disks\/top' names '..\/private\/middle'/,
    );
    await open(image("disks/top", "../private/middle", "qcow2"), ["private"]);
  });

  it("is not looked at where the user names the backing file", async () => {
    await open(image("disks/other", "near.img"), ["shared"]);
    const readOnly = { driver: "qcow2", "read-only": true };
    const file = { driver: "file", filename: image("disks/top", at("private/secret")) };
    const backing = { driver: "raw", file: { driver: "file", filename: at("private/secret") } };
    await qmp("blockdev-add", { ...readOnly, "node-name": "named", file, backing });
    await qmp("blockdev-add", { ...readOnly, "node-name": "alone", file, backing: null });
  });
});

describe("while it runs", () => {
  beforeEach(async () => {
    image("disks/middle", "near.img");
    await open(image("disks/top", "middle", "qcow2"), ["shared"]);
  });

  it("change-backing-file keeps to the rule", async () => {
    const change = (file: string) =>
      qmp("change-backing-file", { device: "top", "image-node-name": "top", "backing-file": file });
    await expect(change(at("private/secret"))).rejects.toThrow(/--backing-root/);
    await expect(change('json:{"driver":"nbd"}')).rejects.toThrow(/Unknown driver 'nbd'/);
    await change(at("disks/middle"));
    expect(daemon!.graph.get("top").details().backingFile).toBe(at("disks/middle"));
  });

  it("block-stream keeps to the rule", async () => {
    const base = daemon!.graph.get("top").backing!.backing!.name;
    const stream = (file: string) =>
      qmp("block-stream", { "job-id": "j", device: "top", "base-node": base, "backing-file": file });
    await expect(stream("/etc/passwd")).rejects.toThrow(/--backing-root/);
    await stream("./near.img");
    await expect.poll(() => daemon!.graph.get("top").details().backingFile).toBe("./near.img");
  });

  it("blockdev-create keeps to the rule", async () => {
    makeRawImage(at("disks/new"), 0, false);
    await qmp("blockdev-add", { driver: "file", "node-name": "new", filename: at("disks/new") });
    const create = async (id: string, file: string) => {
      const options = {
        driver: "qcow2",
        file: "new",
        size: SIZE,
        "backing-file": file,
        "backing-fmt": "raw",
      };
      await qmp("blockdev-create", { "job-id": id, options });
      await expect.poll(() => daemon!.jobs.jobs.find((job) => job.id === id)?.status).toBe("concluded");
      return String(daemon!.jobs.jobs.find((job) => job.id === id)?.error ?? "");
    };
    expect(await create("bad", "/etc/passwd")).toMatch(/--backing-root/);
    expect(await create("good", "../shared/base.img")).toBe("");
  });
});

describe("whatever the rule, a link", () => {
  const link = (options: object) => `json:${JSON.stringify(options)}`;
  const file = (filename: unknown) => ({ driver: "file", filename });

  it("names files, not nodes", async () => {
    await open(image("disks/other", "near.img"), "anywhere");
    await qmp("blockdev-add", { ...file(at("private/secret")), "node-name": "secret" });
    const top = {
      driver: "qcow2",
      "node-name": "top2",
      file: file(image("disks/top", link({ driver: "raw", file: "secret" }))),
    };
    await expect(qmp("blockdev-add", top)).rejects.toThrow(/names the node 'secret': it may name files only/);
  });

  it.each([
    [{ driver: "nbd", host: "127.0.0.1" }, /Unknown driver 'nbd'/],
    [{ driver: "raw", file: { driver: "http", url: "http://x" } }, /Unknown driver 'http'/],
    [{ driver: "blkdebug", image: file("near.img"), config: "/etc/passwd" }, /Unknown driver 'blkdebug'/],
    [{ driver: "raw", file: { driver: "file" } }, /Parameter 'file.filename' is missing/],
    [{ driver: "raw", file: file({ a: 1 }) }, /Parameter/],
    [{ driver: "raw", file: file("near.img"), offset: "x" }, /Parameter 'offset' expects integer/],
    [{ driver: "raw", file: file("near.img"), what: 1 }, /Parameter 'what' is unexpected/],
    [{ driver: "raw", file: file("\0") }, /NUL|Could not open/],
  ])("is held to the schema: %j", async (options, message) => {
    await expect(open(image("disks/top", link(options)), ["shared"])).rejects.toThrow(message);
  });

  it("opens for reading only, whatever it says", async () => {
    const options = {
      driver: "raw",
      "read-only": false,
      file: { ...file(at("disks/near.img")), "read-only": false },
    };
    await open(image("disks/top", link(options)), ["shared"]);
    const { backing } = daemon!.graph.get("top");
    expect([backing?.readOnly, backing?.file?.readOnly]).toEqual([true, true]);
  });

  it("may give numbers as text, as other programs write them", async () => {
    await open(image("disks/top", link({ driver: "raw", file: file(at("disks/near.img")), size: "65536" })), [
      "shared",
    ]);
    expect(daemon!.graph.get("top").backing?.size).toBe(65536);
  });

  // Fuzz seed 25663: the image in the place of a file began its chain anew, for ever.
  it("makes no cycle by way of an image inside an image", async () => {
    const inside = (name: string) =>
      link({ driver: "qcow2", file: { driver: "qcow2", file: file(at(name)) } });
    await expect(open(image("disks/top", inside("disks/top")), ["shared"])).rejects.toThrow(
      /the chain has a cycle/,
    );
    image("disks/a", inside("disks/b"));
    image("disks/b", inside("disks/a"));
    await expect(open(image("disks/top", "a", "qcow2"), ["shared"])).rejects.toThrow(/the chain has a cycle/);
  });
});
