// The reference's `priority`: a GnuTLS priority string. OpenSSL knows no such thing, so what both have is
// translated: a level, and which versions of TLS. The rest is refused, not ignored.

import type { SecureContextOptions, SecureVersion } from "node:tls";
import { BlockError } from "../../base/errors.ts";

/** Versions that are offered, oldest first. Older ones are broken. */
const VERSIONS: readonly (readonly [gnutls: string, openssl: SecureVersion])[] = [
  ["TLS1.2", "TLSv1.2"],
  ["TLS1.3", "TLSv1.3"],
];

/** Levels, and whether 128-bit ciphers may be used. */
const LEVELS: Readonly<Record<string, boolean>> = {
  NORMAL: true,
  SECURE128: true,
  SECURE192: false,
  SECURE256: false,
};

const UNDERSTOOD =
  "NORMAL, SECURE128, SECURE192 or SECURE256, followed by :-VERS-ALL, :+VERS-TLS1.2, :+VERS-TLS1.3, :-VERS-TLS1.2, :-VERS-TLS1.3";

// A pre-shared key goes with the ciphers of TLS 1.3 that hash with SHA-256.
const CIPHERS = {
  x509: [
    "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!PSK",
    "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:ECDHE+AES256:ECDHE+CHACHA20:DHE+AES256:!aNULL:!PSK",
  ],
  psk: [
    "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:kECDHEPSK:kDHEPSK:kPSK:!eNULL:!3DES:!RC4:!aNULL",
    "TLS_CHACHA20_POLY1305_SHA256:kECDHEPSK+AES256:kECDHEPSK+CHACHA20:kDHEPSK+AES256:kDHEPSK+CHACHA20:kPSK+AES256",
  ],
} as const;

/** @throws BlockError EINVAL for what is not understood */
export function priorityOptions(kind: keyof typeof CIPHERS, priority = "NORMAL"): SecureContextOptions {
  const [level, ...changes] = priority.split(":");
  const allows128 = LEVELS[level!];
  if (allows128 === undefined) throw notUnderstood(level!);
  const versions = new Set(VERSIONS.map(([name]) => name));
  for (const change of changes) changeVersions(versions, change);
  const left = VERSIONS.filter(([name]) => versions.has(name)).map(([, version]) => version);
  if (left.length === 0) throw new BlockError("EINVAL", `priority '${priority}' leaves no version of TLS`);
  return { ciphers: CIPHERS[kind][allows128 ? 0 : 1], minVersion: left[0]!, maxVersion: left.at(-1)! };
}

function changeVersions(versions: Set<string>, change: string): void {
  const [, sign, name] = /^([+-])VERS-(.+)$/.exec(change) ?? [];
  const isAll = name === "ALL" || name === "TLS-ALL";
  if (sign === "-" && isAll) versions.clear();
  else if (!VERSIONS.some(([known]) => known === name)) throw notUnderstood(change);
  else if (sign === "-") versions.delete(name!);
  else versions.add(name!);
}

function notUnderstood(part: string): BlockError {
  return new BlockError("EINVAL", `priority: '${part}' is not understood here; there are ${UNDERSTOOD}`);
}
