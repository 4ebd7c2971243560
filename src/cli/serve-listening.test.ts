import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { silentLogger } from "../base/logger.ts";
import { type ListeningFlags, listeningRules, servePolicy } from "./serve-listening.ts";

const flags = (more: Partial<ListeningFlags>): ListeningFlags => ({
  bind: "127.0.0.1",
  verifyPeer: true,
  tlsAllow: [],
  ...more,
});

it("asks before a disk is open to a network without TLS", () => {
  expect(() => listeningRules(flags({ port: "1", bind: "0.0.0.0" }))).toThrow(
    /whoever reaches 0\.0\.0\.0 .* --tls, .* --bind, or say --insecure/,
  );
  listeningRules(flags({ port: "1", bind: "0.0.0.0", insecure: true }));
  listeningRules(flags({ port: "1", bind: "0.0.0.0", tls: "/keys" }));
  listeningRules(flags({ port: "1", bind: "::1" }));
  listeningRules(flags({ bind: "0.0.0.0" }));
});

it("gives rights to unix sockets only", () => {
  expect(listeningRules(flags({ socketMode: "660" })).rights.mode).toBe(0o660);
  expect(() => listeningRules(flags({ port: "1", socketGroup: "root" }))).toThrow("are for unix sockets");
});

it("takes the kind of keys from what the directory holds, and says what is missing", () => {
  const directory = mkdtempSync(join(tmpdir(), "keys-"));
  try {
    expect(servePolicy(flags({}), silentLogger)).toBeUndefined();
    expect(() => servePolicy(flags({ tlsAllow: ["CN=x"] }), silentLogger)).toThrow("need --tls");
    expect(() => servePolicy(flags({ verifyPeer: false }), silentLogger)).toThrow("need --tls");
    expect(() => servePolicy(flags({ tls: directory }), silentLogger)).toThrow(
      `Unable to access credentials ${directory}/ca-cert.pem: No such file or directory`,
    );
    writeFileSync(join(directory, "keys.psk"), "alice:00ff\n");
    expect(servePolicy(flags({ tls: directory }), silentLogger)?.options.pskCallback).toBeDefined();
    expect(() => servePolicy(flags({ tls: directory, verifyPeer: false }), silentLogger)).toThrow(
      "--no-verify-peer is for certificates",
    );
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
