// NBD over TLS with foreign clients: libnbd (GnuTLS) and QEMU; who comes in and who does not, and what is
// said. With STRATA_TEST_DAEMON=qemu-storage-daemon the reference is asked the same.

import { copyFileSync, lstatSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { MiB } from "../src/base/units.ts";
import { Authority } from "../src/control/testing/certificates.ts";
import { type Daemon, IS_REFERENCE, startDaemon, startRefused } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { Strata } from "./harness/strata-program.ts";
import { run, runAnyhow, runToFailure } from "./harness/tool.ts";

const BYTES = 32 * MiB;
const KEYS = "alice:00112233445566778899aabbccddeeff\nbob:ffeeddccbbaa99887766554433221100\n";
const NAME = "C=GB,O=Example\\, Org,CN=client one";

/** A disk, an authority, keys of a server and of a client. */
function place() {
  const directory = scratchDirectory();
  const at = (...names: string[]) => path.join(directory, ...names);
  const disk = at("disk.img");
  writeFileSync(disk, Buffer.alloc(BYTES, "some bytes of a disk, and more of them; "));
  const authority = new Authority(at("ca"));
  authority.issue(at("server"), { kind: "server", subject: "/CN=localhost" });
  authority.issue(at("client"), { kind: "client", subject: "/C=GB/O=Example, Org/CN=client one" });
  mkdirSync(at("psk"));
  writeFileSync(at("psk", "keys.psk"), KEYS, { mode: 0o600 });
  return { directory, at, disk, authority };
}

type Place = ReturnType<typeof place>;

const x509 = ({ at }: Place, more = "") => `tls-creds-x509,id=tls,endpoint=server,dir=${at("server")}${more}`;
const psk = ({ at }: Place) => `tls-creds-psk,id=tls,endpoint=server,dir=${at("psk")}`;

function serve(here: Place, credentials: string, more: readonly string[] = [], authz = ""): Promise<Daemon> {
  const { directory, disk } = here;
  return startDaemon(directory, [
    ...["--object", credentials, ...more],
    ...["--blockdev", `driver=file,node-name=disk,filename=${disk}`],
    ...["--nbd-server", `addr.type=unix,addr.path=${directory}/nbd.sock,tls-creds=tls${authz}`],
    ...["--export", "nbd,id=e,node-name=disk,name=disk,writable=on"],
  ]);
}

/** The address for libnbd; `keys` is the client's directory. */
const certificateUri = ({ at }: Place, keys = "client") =>
  `nbds+unix:///disk?socket=${at("nbd.sock")}&tls-certificates=${at(keys)}&tls-hostname=localhost`;
const pskUri = ({ at }: Place, user = "alice", file = "psk/keys.psk") =>
  `nbds+unix://${user}@/disk?socket=${at("nbd.sock")}&tls-psk-file=${at(file)}`;

/** The arguments of QEMU's programs for a disk over TLS. */
function qemu({ at }: Place, keys: string): readonly [object: string, image: string] {
  const server = `server.type=unix,server.path=${at("nbd.sock")}`;
  return [
    `${keys},id=tls,endpoint=client`,
    `driver=nbd,${server},export=disk,tls-creds=tls,tls-hostname=localhost`,
  ];
}

const plainUri = ({ at }: Place) => `nbd+unix:///disk?socket=${at("nbd.sock")}`;

describe.each(["certificates", "pre-shared keys"])("%s", (kind) => {
  const isPsk = kind === "pre-shared keys";
  const start = (here: Place) => serve(here, isPsk ? psk(here) : x509(here));
  const uriOf = (here: Place) => (isPsk ? pskUri(here) : certificateUri(here));
  const objectOf = ({ at }: Place) =>
    isPsk ? `tls-creds-psk,dir=${at("psk")},username=alice` : `tls-creds-x509,dir=${at("client")}`;

  it("nbdinfo sees TLS and what it would see without", async () => {
    const here = place();
    await start(here);
    const told = JSON.parse(await run("nbdinfo", "--json", uriOf(here)));
    expect(told).toMatchObject({ TLS: true, structured: true });
    expect(told.exports[0]).toMatchObject({
      "export-size": BYTES,
      is_read_only: false,
      can_multi_conn: true,
    });
  });

  it("nbdcopy reads and writes the disk, over several connections", async () => {
    const here = place();
    const daemon = await start(here);
    const [copy, other] = [here.at("copy"), here.at("other")];
    await run("nbdcopy", "--connections=4", "--requests=32", uriOf(here), copy);
    expect(readFileSync(copy).equals(readFileSync(here.disk))).toBe(true);
    writeFileSync(other, Buffer.alloc(BYTES, "something else, of another length"));
    await run("nbdcopy", "--flush", "--connections=4", other, uriOf(here));
    expect(readFileSync(here.disk).equals(readFileSync(other))).toBe(true);
    await daemon.quit();
  });

  it("qemu-io writes, zeroes and reads; qemu-img compares", async () => {
    const here = place();
    await start(here);
    const [object, image] = qemu(here, objectOf(here));
    const commands = ["write -P 7 0 5M", "write -z 1M 1M", "write -P 9 4095 3", "discard 6M 1M", "flush"];
    const reads = ["read -P 7 4098 1044478", "read -P 0 1M 1M", "read -P 9 4095 3", "aio_read 0 32M"];
    const lines = [...commands, ...reads].flatMap((line) => ["-c", line]);
    expect(await run("qemu-io", "--object", object, "--image-opts", image, ...lines)).not.toContain("failed");
    const same = `driver=raw,file.driver=file,file.filename=${here.disk},file.locking=off`;
    expect(await run("qemu-img", "compare", "--object", object, "--image-opts", image, same)).toContain(
      "identical",
    );
  });

  it("a client without TLS gets nothing", async () => {
    const here = place();
    const daemon = await start(here);
    expect(await runToFailure("qemu-img", "info", plainUri(here))).toContain(
      "TLS negotiation required before option",
    );
    await runToFailure("nbdcopy", plainUri(here), here.at("copy"));
    await runToFailure("nbdinfo", "--list", plainUri(here));
    await run("nbdinfo", "--size", uriOf(here));
    expect(await daemon.isAlive()).toBe(true);
  });
});

describe("who does not come in", () => {
  it("clients without a certificate, with one of another authority, or with one that was revoked", async () => {
    const here = place();
    const { at, authority } = here;
    new Authority(at("other-ca"), "Other CA").issue(at("stranger"), {
      kind: "client",
      subject: "/CN=client one",
    });
    copyFileSync(at("ca", "ca-cert.pem"), at("stranger", "ca-cert.pem"));
    mkdirSync(at("none"));
    copyFileSync(at("ca", "ca-cert.pem"), at("none", "ca-cert.pem"));
    authority.issue(at("revoked"), { kind: "client", subject: "/CN=client two" });
    authority.revoke(at("revoked", "client-cert.pem"));
    copyFileSync(at("ca", "ca-crl.pem"), at("server", "ca-crl.pem"));
    const daemon = await serve(here, x509(here));
    for (const keys of ["none", "stranger", "revoked"]) {
      await runToFailure("nbdcopy", certificateUri(here, keys), at("copy"));
    }
    expect(await run("nbdinfo", "--size", certificateUri(here))).toBe(`${BYTES}\n`);
    expect(await daemon.isAlive()).toBe(true);
  });

  it("users without a key, or with a wrong one", async () => {
    const here = place();
    await serve(here, psk(here));
    writeFileSync(
      here.at("wrong.psk"),
      "alice:ffffffffffffffffffffffffffffffff\nmallory:00112233445566778899aabbccddeeff\n",
    );
    await runToFailure("nbdinfo", pskUri(here, "alice", "wrong.psk"));
    await runToFailure("nbdinfo", pskUri(here, "mallory", "wrong.psk"));
    expect(await run("nbdinfo", "--size", pskUri(here, "bob"))).toBe(`${BYTES}\n`);
  });

  it("a server does not come in either: clients see through one of another name or authority", async () => {
    const here = place();
    await serve(here, x509(here));
    const [object, image] = qemu(here, `tls-creds-x509,dir=${here.at("client")}`);
    await run("qemu-img", "info", "--object", object, "--image-opts", image);
    const elsewhere = image.replace("tls-hostname=localhost", "tls-hostname=example.com");
    await runToFailure("qemu-img", "info", "--object", object, "--image-opts", elsewhere);
    new Authority(here.at("other-ca"), "Other CA");
    copyFileSync(here.at("other-ca", "ca-cert.pem"), here.at("client", "ca-cert.pem"));
    const trusting = `${object},sanity-check=off`;
    await runToFailure("qemu-img", "info", "--object", trusting, "--image-opts", image);
  });

  it("with verify-peer=off clients need no certificate", async () => {
    const here = place();
    mkdirSync(here.at("none"));
    copyFileSync(here.at("ca", "ca-cert.pem"), here.at("none", "ca-cert.pem"));
    await serve(here, x509(here, ",verify-peer=off"));
    expect(await run("nbdinfo", "--size", certificateUri(here, "none"))).toBe(`${BYTES}\n`);
  });

  it("those whom tls-authz does not name, from the moment that it is changed", async () => {
    const here = place();
    const simple = (identity: string) => `authz-simple,id=who,identity=${identity.replaceAll(",", ",,")}`;
    const daemon = await serve(here, x509(here), ["--object", simple(NAME)], ",tls-authz=who");
    const uri = certificateUri(here);
    await run("nbdinfo", "--size", uri);
    await daemon.qmp.execute("object-del", { id: "who" });
    await runToFailure("nbdinfo", uri);
    const list = (match: string) => ({
      "qom-type": "authz-list",
      id: "who",
      rules: [{ match, policy: "allow", format: "glob" }],
    });
    await daemon.qmp.execute("object-add", list("C=GB,*CN=client ?"));
    await runToFailure("nbdinfo", uri);
    await daemon.qmp.execute("object-del", { id: "who" });
    await daemon.qmp.execute("object-add", list("C=GB,*CN=client ???"));
    await run("nbdinfo", "--size", uri);
  });

  it.skipIf(IS_REFERENCE)("users of pre-shared keys whom tls-authz does not name", async () => {
    const here = place();
    await serve(here, psk(here), ["--object", "authz-simple,id=who,identity=bob"], ",tls-authz=who");
    await run("nbdinfo", "--size", pskUri(here, "bob"));
    await runToFailure("nbdinfo", pskUri(here, "alice"));
  });
});

it("the monitor makes credentials and starts a server with them; its words are the reference's", async () => {
  const here = place();
  const daemon = await startDaemon(here.directory, []);
  const addr = { type: "unix", data: { path: here.at("nbd.sock") } };
  const start = (more: object) => daemon.qmp.execute("nbd-server-start", { addr, ...more });
  const add = (more: object) =>
    daemon.qmp.execute("object-add", {
      "qom-type": "tls-creds-x509",
      id: "tls",
      endpoint: "server",
      ...more,
    });
  await expect(start({ "tls-creds": "tls" })).rejects.toThrow("No TLS credentials with id 'tls'");
  await expect(add({})).rejects.toThrow("Missing 'dir' property value");
  await expect(add({ dir: here.at("client") })).rejects.toThrow(
    `Unable to access credentials ${here.at("client")}/server-cert.pem: No such file or directory`,
  );
  await add({ dir: here.at("client"), endpoint: "client" });
  await expect(start({ "tls-creds": "tls" })).rejects.toThrow(
    "Expected TLS credentials for a server endpoint",
  );
  await daemon.qmp.execute("object-del", { id: "tls" });
  await add({ dir: here.at("server") });
  await start({ "tls-creds": "tls" });
  // What a server has taken stays with it.
  await daemon.qmp.execute("object-del", { id: "tls" });
  await daemon.qmp.execute("blockdev-add", { driver: "file", "node-name": "disk", filename: here.disk });
  await daemon.qmp.execute("block-export-add", { type: "nbd", id: "e", "node-name": "disk", name: "disk" });
  expect(await run("nbdinfo", "--size", certificateUri(here))).toBe(`${BYTES}\n`);
});

it("keys that cannot be used stop the daemon at its start, with the reference's words", async () => {
  const here = place();
  const { at } = here;
  const refused = (credentials: string) => startRefused(["--object", credentials]);
  copyFileSync(at("client", "client-key.pem"), at("server", "server-key.pem"));
  expect(await refused(x509(here))).toContain("The certificate and the given key do not match.");
  rmSync(at("server", "ca-cert.pem"));
  expect(await refused(x509(here))).toContain(
    `Unable to access credentials ${at("server", "ca-cert.pem")}: No such file or directory`,
  );
  expect(await refused(`tls-creds-psk,id=t,endpoint=client,dir=${at("psk")}`)).toContain(
    `Username qemu not found in PSK file ${at("psk", "keys.psk")}`,
  );
  expect(await refused(x509(here, ",passwordid=none"))).toMatch(/No secret with id 'none'|Unable to access/);
});

describe.skipIf(IS_REFERENCE)("strata serve", () => {
  const serving = (here: Place, ...args: string[]) =>
    new Strata(here.directory).serve(here.disk, "--format", "raw", ...args);

  it("asks for a word before a disk is open to a network", async () => {
    const here = place();
    const strata = new Strata(here.directory);
    const args = ["serve", here.disk, "--format", "raw", "--port", "0", "--bind", "0.0.0.0"];
    const { code, stderr } = await strata.run(args);
    expect({ code, stderr }).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/whoever reaches 0\.0\.0\.0/),
    });
    const { uri } = await serving(here, "--port", "0", "--bind", "0.0.0.0", "--insecure");
    expect(await run("nbdinfo", "--size", uri.replace("0.0.0.0", "127.0.0.1"))).toBe(`${BYTES}\n`);
  });

  it("serves over TLS with the keys of a directory, to those who are named", async () => {
    const here = place();
    const { uri } = await serving(here, "--port", "0", "--bind", "0.0.0.0", "--tls", here.at("server"),
      "--tls-allow", "*,CN=client one"); // biome-ignore format: a command line
    expect(uri).toMatch(/^nbds:/);
    const address = uri.replace("0.0.0.0", "localhost");
    expect(await run("nbdinfo", "--size", `${address}?tls-certificates=${here.at("client")}`)).toBe(
      `${BYTES}\n`,
    );
    here.authority.issue(here.at("other"), { kind: "client", subject: "/C=GB/CN=client two" });
    await runToFailure("nbdinfo", `${address}?tls-certificates=${here.at("other")}`);
  });

  it("makes sockets that are their owner's alone, and one for a group where it is asked to", async () => {
    const here = place();
    const before = process.umask(0);
    try {
      const modeOf = (name: string) => lstatSync(here.at(name)).mode & 0o777;
      await serving(
        here,
        "--socket",
        "nbd.sock",
        "--control",
        "c.qmp",
        "--monitor",
        "m.sock",
        "--socket-mode",
        "660",
      );
      const modes = ["nbd.sock", "c.qmp", "c.hmp", "m.sock"].map(modeOf);
      expect(modes).toEqual([0o660, 0o600, 0o600, 0o600]);
    } finally {
      process.umask(before);
    }
  });
});

describe.skipIf(IS_REFERENCE)("the daemon's listeners", () => {
  it("are for the daemon's user alone, whatever the umask", async () => {
    const here = place();
    const before = process.umask(0);
    const chardev = `socket,id=m,path=${here.at("m.sock")},server=on,wait=off`;
    try {
      await serve(here, psk(here), ["--chardev", chardev, "--monitor", "m"]);
    } finally {
      process.umask(before);
    }
    for (const name of ["nbd.sock", "m.sock"]) expect(lstatSync(here.at(name)).mode & 0o777).toBe(0o600);
    if (process.getuid?.() !== 0) return;
    const { code } = await runAnyhow("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
      "nbdinfo", pskUri(here)); // biome-ignore format: a command line
    expect(code).not.toBe(0);
  });

  it("on TCP are warned of, unless it is said that they are meant", async () => {
    const here = place();
    const args = [
      ...["--nbd-server", "addr.type=inet,addr.host=0.0.0.0,addr.port=0"],
      ...["--chardev", "socket,id=m,host=0.0.0.0,port=0,server=on,wait=off", "--monitor", "m"],
    ];
    const careless = await startDaemon(here.directory, args);
    expect(careless.output).toContain("NBD server without TLS on 0.0.0.0:");
    expect(careless.output).toContain("monitor on 0.0.0.0:");
    expect((await startDaemon(here.directory, [...args, "--insecure"])).output).toBe("");
  });
});
