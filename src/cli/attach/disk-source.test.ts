import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { controlDirectory, makeControlDirectory } from "../control-directory.ts";
import { findSource, type SourcePlan } from "./disk-source.ts";

const uid = process.getuid!();
let runtimeDirectory: string;
const servers: Server[] = [];

beforeEach(() => {
  runtimeDirectory = mkdtempSync(path.join(tmpdir(), "strata-source-"));
  makeControlDirectory(controlDirectory({ runtimeDirectory, uid }), uid);
});

afterEach(() => {
  for (const server of servers.splice(0)) server.close();
  rmSync(runtimeDirectory, { recursive: true });
});

/** A daemon as far as its QMP socket goes: what it serves, by name and top image. */
async function daemon(name: string, served: Readonly<Record<string, string>>): Promise<string> {
  const answers: Record<string, unknown> = {
    qmp_capabilities: {},
    "x-strata-query-devices": Object.keys(served).map((device) => ({
      name: device,
      id: `id-${device}`,
      "node-name": `node-${device}`,
      uri: `nbd://${name}/${device}`,
    })),
    "query-named-block-nodes": Object.entries(served).map(([device, file]) => ({
      "node-name": `node-${device}`,
      drv: "qcow2",
      file,
    })),
  };
  const server = createServer((socket) => {
    socket.on("error", () => socket.destroy());
    socket.write('{"QMP": {}}\n');
    let partial = "";
    socket.setEncoding("utf8").on("data", (text: string) => {
      const lines = (partial + text).split("\n");
      partial = lines.pop()!;
      for (const line of lines) {
        const { execute } = JSON.parse(line) as { execute: string };
        socket.write(`${JSON.stringify({ return: answers[execute] })}\n`);
      }
    });
  });
  servers.push(server);
  const qmp = path.join(runtimeDirectory, "strata", `${name}.qmp`);
  await new Promise<void>((resolve) => server.listen(qmp, resolve));
  return qmp;
}

function find(disk: string, more: Partial<SourcePlan> = {}) {
  return findSource({
    disk,
    format: undefined,
    readOnly: false,
    control: undefined,
    environment: { runtimeDirectory, uid },
    checkInterrupt() {},
    ...more,
  });
}

it("takes a URI as it stands", async () => {
  expect(await find("nbd://host/disk")).toEqual({ uri: "nbd://host/disk" });
  await expect(find("nbd://host/disk", { format: "raw" })).rejects.toThrow("--format is for image files");
});

it("finds the daemon that serves an image as its top, by whatever name the image is given", async () => {
  const image = path.join(runtimeDirectory, "disk.qcow2");
  writeFileSync(image, Buffer.from("QFI\xfb", "latin1"));
  const qmp = await daemon("one", { virtio0: image });
  await daemon("two", { virtio0: "/nonexistent" });
  const found = { uri: "nbd://one/virtio0", qmp };
  expect(await find(image)).toEqual(found);
  expect(await find(path.relative(process.cwd(), image))).toEqual(found);
});

it("finds a device by name or id, and a daemon by its name", async () => {
  const one = await daemon("one", { root: "/a" });
  const two = await daemon("two", { data: "/b", more: "/c" });
  expect(await find("root")).toEqual({ uri: "nbd://one/root", qmp: one });
  expect(await find("id-more")).toEqual({ uri: "nbd://two/more", qmp: two });
  expect(await find("one")).toEqual({ uri: "nbd://one/root", qmp: one });
  await expect(find("two")).rejects.toThrow(
    "'two' is no image file and nothing that is served (served are root of one, data of two, more of two): " +
      "name a file, an NBD URI, or a device",
  );
});

it("does not choose between daemons", async () => {
  const one = await daemon("one", { virtio0: "/a" });
  await daemon("two", { virtio0: "/b" });
  await expect(find("virtio0")).rejects.toThrow("say which with --control NAME (one, two)");
  expect(await find("virtio0", { control: "one" })).toEqual({ uri: "nbd://one/virtio0", qmp: one });
  await expect(find("other", { control: "one" })).rejects.toThrow(/serves no 'other': there is virtio0/);
});

it("says that there is nothing of that name", async () => {
  await expect(find("./disk.qcow2")).rejects.toThrow("there is no image './disk.qcow2'");
  await expect(find("virtio0")).rejects.toThrow("nothing that is served (no daemon runs)");
  await expect(find(runtimeDirectory)).rejects.toThrow("is a directory");
  const raw = path.join(runtimeDirectory, "disk");
  writeFileSync(raw, Buffer.alloc(512));
  await expect(find(raw)).rejects.toThrow("say so with --format raw");
});
