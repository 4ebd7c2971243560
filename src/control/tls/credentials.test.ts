import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Logger, silentLogger } from "../../base/logger.ts";
import { ObjectTable } from "../objects.ts";
import { Authority, HAS_OPENSSL } from "../testing/certificates.ts";
import { CredentialFiles } from "./credentials.ts";
import { nbdPolicy } from "./nbd-policy.ts";
import { priorityOptions } from "./priority.ts";
import { type X509Settings, x509Credentials } from "./x509.ts";

let directory: string;
const at = (...names: string[]) => path.join(directory, ...names);

beforeAll(() => {
  directory = mkdtempSync(path.join(tmpdir(), "tls-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** What an object-add says; undefined when it succeeds. */
function refusal(options: object, objects = new ObjectTable()): string | undefined {
  try {
    objects.add({ id: "t", ...options } as never);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

function listening(): { said: string[]; logger: Logger } {
  const said: string[] = [];
  return { said, logger: { ...silentLogger, warn: (message) => void said.push(message) } };
}

describe("tls-creds-psk", () => {
  const psk = (dir: string, more: object = {}) => ({
    "qom-type": "tls-creds-psk",
    endpoint: "server",
    dir,
    ...more,
  });
  const keys = (name: string, text: string) => {
    mkdirSync(at(name), { recursive: true });
    writeFileSync(at(name, "keys.psk"), text, { mode: 0o600 });
    return at(name);
  };

  it("takes users and keys, and says in the reference's words what is missing", () => {
    const dir = keys("psk", "alice:00ff\nbob:A0b1\n\n");
    expect(refusal(psk(dir))).toBeUndefined();
    expect(refusal(psk(dir, { endpoint: "client", username: "bob" }))).toBeUndefined();
    expect(refusal(psk(dir, { endpoint: "client" }))).toBe(
      `Username qemu not found in PSK file ${dir}/keys.psk`,
    );
    expect(refusal({ "qom-type": "tls-creds-psk" })).toBe("Missing 'dir' property value");
    expect(refusal(psk(at("none")))).toBe(
      `Unable to access credentials ${at("none")}/keys.psk: No such file or directory`,
    );
  });

  it.each([
    "alice",
    ":00",
    "alice:",
    "alice:0",
    "alice:xy",
    `${"a".repeat(129)}:00`,
    `a:${"00".repeat(257)}`,
  ])("tells the line that is wrong, and never its key: %#", (line) => {
    const said = refusal(psk(keys("bad", `ok:00\n${line}\n`)));
    expect(said).toMatch(/bad\/keys\.psk, line 2: .*; expected USER:KEY, the key in hex$/);
  });

  it("warns of keys that everybody can read", () => {
    const dir = keys("open", "a:00\n");
    const { said, logger } = listening();
    expect(refusal(psk(dir), new ObjectTable(logger))).toBeUndefined();
    expect(said).toEqual([]);
    chmodSync(at("open", "keys.psk"), 0o644);
    expect(refusal(psk(dir), new ObjectTable(logger))).toBeUndefined();
    expect(said).toEqual([
      `${dir}/keys.psk holds secret keys and can be read by everybody: chmod 600 ${dir}/keys.psk`,
    ]);
  });

  it("sees users that come and go without a restart", () => {
    const dir = keys("live", "a:01\n");
    const objects = new ObjectTable();
    objects.add({ id: "t", ...psk(dir) } as never);
    const keyOf = objects.serverCredentials("t").options.pskCallback as unknown as (
      client: object,
      user: string,
    ) => Buffer | null;
    expect([keyOf({}, "a"), keyOf({}, "b")]).toEqual([Buffer.from([1]), null]);
    keys("live", "b:02\n");
    expect([keyOf({}, "a"), keyOf({}, "b")]).toEqual([null, Buffer.from([2])]);
    keys("live", "garbage");
    expect(keyOf({}, "b")).toBeNull();
  });
});

it("tls-creds-anon is refused with the reason", () => {
  expect(refusal({ "qom-type": "tls-creds-anon", endpoint: "server" })).toBe(
    "TLS without keys (tls-creds-anon) is not supported: it would keep nobody out who sits between client and server; use tls-creds-psk or tls-creds-x509",
  );
});

describe("priority", () => {
  it.each([
    ["NORMAL", "TLSv1.2", "TLSv1.3"],
    ["NORMAL:-VERS-TLS1.2", "TLSv1.3", "TLSv1.3"],
    ["SECURE256:-VERS-ALL:+VERS-TLS1.2", "TLSv1.2", "TLSv1.2"],
  ])("%s", (priority, minVersion, maxVersion) => {
    expect(priorityOptions("x509", priority)).toMatchObject({ minVersion, maxVersion });
  });

  it.each([
    "",
    "normal",
    "NORMAL:+VERS-TLS1.0",
    "NORMAL:-AES-128-CBC",
    "NORMAL:%COMPAT",
    "@SYSTEM",
    "NORMAL:",
  ])("refuses '%s' instead of ignoring it", (priority) => {
    expect(() => priorityOptions("psk", priority)).toThrow("is not understood here; there are NORMAL");
  });

  it("needs a version that is left", () => {
    expect(() => priorityOptions("psk", "NORMAL:-VERS-ALL")).toThrow("leaves no version of TLS");
  });
});

describe.skipIf(!HAS_OPENSSL)("tls-creds-x509", () => {
  const x509 = (dir: string, more: object = {}) => ({
    "qom-type": "tls-creds-x509",
    endpoint: "server",
    dir,
    ...more,
  });

  beforeAll(() => {
    const authority = new Authority(at("ca"));
    authority.issue(at("good"), { kind: "server", subject: "/C=GB/CN=localhost" });
    authority.issue(at("good"), { kind: "client", subject: "/C=GB/CN=one" });
    authority.issue(at("locked"), { kind: "server", subject: "/CN=localhost", password: "sesame" });
    authority.issue(at("purpose"), { kind: "server", subject: "/CN=localhost", purpose: "emailProtection" });
    new Authority(at("other"), "Other CA").issue(at("stranger"), {
      kind: "server",
      subject: "/CN=localhost",
    });
    copyFileSync(at("ca", "ca-cert.pem"), at("stranger", "ca-cert.pem"));
  });

  function variant(name: string, change: (dir: string) => void): string {
    mkdirSync(at(name), { recursive: true });
    for (const file of ["ca-cert.pem", "server-cert.pem", "server-key.pem"]) {
      copyFileSync(at("good", file), at(name, file));
    }
    change(at(name));
    return at(name);
  }

  it("takes what is right, for either end", () => {
    expect(refusal(x509(at("good")))).toBeUndefined();
    expect(refusal(x509(at("good"), { endpoint: "client" }))).toBeUndefined();
    expect(refusal(x509(at("locked"), { endpoint: "client" }))).toBeUndefined();
  });

  it("says which file is missing", () => {
    for (const name of ["ca-cert.pem", "server-cert.pem", "server-key.pem"]) {
      const dir = variant(`no-${name}`, (made) => rmSync(path.join(made, name)));
      expect(refusal(x509(dir))).toBe(
        `Unable to access credentials ${dir}/${name}: No such file or directory`,
      );
    }
  });

  it("says what is wrong with certificates and keys", () => {
    const swapped = variant("swapped", (dir) =>
      copyFileSync(at("good", "client-key.pem"), path.join(dir, "server-key.pem")),
    );
    expect(refusal(x509(swapped))).toBe(
      `Cannot load certificate '${swapped}/server-cert.pem' & key '${swapped}/server-key.pem': The certificate and the given key do not match.`,
    );
    const garbage = variant("garbage", (dir) => writeFileSync(path.join(dir, "ca-cert.pem"), "garbage"));
    expect(refusal(x509(garbage))).toBe(
      `Unable to import certificate ${garbage}/ca-cert.pem: it holds no certificate in PEM form`,
    );
    const broken = variant("broken", (dir) =>
      writeFileSync(
        path.join(dir, "server-cert.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
      ),
    );
    expect(refusal(x509(broken))).toContain(`Unable to import certificate ${broken}/server-cert.pem: `);
    const leaf = variant("leaf", (dir) =>
      copyFileSync(at("good", "client-cert.pem"), path.join(dir, "ca-cert.pem")),
    );
    expect(refusal(x509(leaf))).toBe(
      `The certificate ${leaf}/ca-cert.pem basic constraints do not show a CA`,
    );
    expect(refusal(x509(at("purpose")))).toBe(
      `Certificate ${at("purpose")}/server-cert.pem purpose does not allow use with a TLS server`,
    );
    expect(refusal(x509(at("stranger")))).toContain("The certificate hasn't got a known issuer");
    expect(refusal(x509(at("stranger"), { "sanity-check": false }))).toBeUndefined();
    const crl = variant("crl", (dir) => writeFileSync(path.join(dir, "ca-crl.pem"), "garbage"));
    expect(refusal(x509(crl))).toContain(`The credentials in ${crl} cannot be used: `);
  });

  it("needs the password of an encrypted key, from a secret", () => {
    const objects = new ObjectTable();
    objects.add({
      "qom-type": "secret",
      id: "right",
      data: Buffer.from("sesame").toString("base64"),
      format: "base64",
    });
    objects.add({ "qom-type": "secret", id: "wrong", data: "barley" });
    const asks = (more: object) => refusal(x509(at("locked"), more), objects);
    expect(asks({})).toContain("the key is encrypted: give its password with passwordid");
    expect(asks({ passwordid: "none" })).toBe("No secret with id 'none'");
    expect(asks({ passwordid: "wrong" })).toContain("the key is encrypted: the password is wrong");
    expect(asks({ passwordid: "right" })).toBeUndefined();
  });

  it("does not take certificates before or after their time", () => {
    const settings: X509Settings = {
      endpoint: "server",
      verifyPeer: true,
      sanityCheck: true,
      priority: undefined,
      passphrase: undefined,
    };
    const load = (days: number, more: Partial<X509Settings> = {}) => {
      const files = new CredentialFiles(at("good"), silentLogger);
      return x509Credentials(files, { ...settings, ...more }, Date.now() + days * 86_400_000);
    };
    expect(() => load(31)).toThrow(
      `The CA certificate ${at("good")}/ca-cert.pem has expired: it was good until `,
    );
    expect(() => load(-1)).toThrow(`The CA certificate ${at("good")}/ca-cert.pem is not yet active: `);
    load(29);
    load(31, { sanityCheck: false });
  });

  it("knows who clients are only where it asks them for certificates", () => {
    const objects = new ObjectTable();
    const policy = (creds: string, authz?: string) => nbdPolicy(objects, { creds, authz }, silentLogger);
    objects.add({ id: "t", ...x509(at("good")) } as never);
    objects.add({ id: "open", ...x509(at("good"), { "verify-peer": false }) } as never);
    objects.add({ id: "client", ...x509(at("good"), { endpoint: "client" }) } as never);
    expect(policy("t")?.options).toMatchObject({ requestCert: true, rejectUnauthorized: true });
    expect(policy("open")?.options).toMatchObject({ requestCert: false });
    expect(() => policy("open", "a")).toThrow("tls-authz needs to know who the clients are");
    expect(() => policy("client")).toThrow("Expected TLS credentials for a server endpoint");
    expect(() => policy("none")).toThrow("No TLS credentials with id 'none'");
    objects.add({ "qom-type": "authz-simple", id: "a", identity: "x" });
    expect(() => policy("a")).toThrow("Object with id 'a' is not TLS credentials");
    expect(() => nbdPolicy(objects, { creds: undefined, authz: "a" }, silentLogger)).toThrow(
      "TLS authorization is not supported without TLS credentials",
    );
  });
});
