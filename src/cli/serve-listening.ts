// Who may reach the disk of `strata serve`: TLS, rights of the unix socket, and the question before a disk
// is open to a network.

import { existsSync } from "node:fs";
import path from "node:path";
import type { TlsPolicy } from "../../nbd/tls.ts";
import type { Logger } from "../base/logger.ts";
import { isLoopback, type ListeningRules } from "../control/exposure.ts";
import { ObjectTable } from "../control/objects.ts";
import { parseRights } from "../control/socket-rights.ts";
import { nbdPolicy } from "../control/tls/nbd-policy.ts";
import { usageError } from "./failure.ts";

export interface ListeningFlags {
  readonly port?: string;
  readonly bind: string;
  readonly insecure?: boolean;
  readonly socketMode?: string;
  readonly socketGroup?: string;
  /** Directory of keys. */
  readonly tls?: string;
  readonly verifyPeer: boolean;
  readonly tlsAllow: readonly string[];
}

/** @throws BlockError USAGE, EINVAL */
export function listeningRules(flags: ListeningFlags): ListeningRules {
  const { port, bind, insecure = false, socketMode, socketGroup } = flags;
  if (port !== undefined && flags.tls === undefined && !insecure && !isLoopback(bind)) {
    const risk = `whoever reaches ${bind} could read and write the disk, and others could look on`;
    throw usageError(`${risk}: give keys with --tls, a loopback address with --bind, or say --insecure`);
  }
  if (port !== undefined && (socketMode ?? socketGroup) !== undefined) {
    throw usageError("--socket-mode and --socket-group are for unix sockets, not for --port");
  }
  return { rights: parseRights(socketMode, socketGroup), insecure: true };
}

/**
 * Who comes in over TLS; undefined without it.
 * @throws BlockError USAGE, EINVAL for keys that cannot be used
 */
export function servePolicy(flags: ListeningFlags, logger: Logger): TlsPolicy | undefined {
  const { tls, verifyPeer, tlsAllow } = flags;
  if (tls === undefined) {
    if (verifyPeer && tlsAllow.length === 0) return undefined;
    throw usageError("--no-verify-peer and --tls-allow need --tls");
  }
  const dir = path.resolve(tls);
  const isPsk = !existsSync(path.join(dir, "server-cert.pem")) && existsSync(path.join(dir, "keys.psk"));
  if (isPsk && !verifyPeer) throw usageError("--no-verify-peer is for certificates: keys.psk has users");
  const objects = new ObjectTable(logger);
  if (isPsk) objects.add({ "qom-type": "tls-creds-psk", id: "tls", endpoint: "server", dir });
  else {
    objects.add({
      "qom-type": "tls-creds-x509",
      id: "tls",
      endpoint: "server",
      dir,
      "verify-peer": verifyPeer,
    });
  }
  if (tlsAllow.length === 0) return nbdPolicy(objects, { creds: "tls", authz: undefined }, logger);
  const rules = tlsAllow.map((match) => ({ match, policy: "allow", format: "glob" }) as const);
  objects.add({ "qom-type": "authz-list", id: "allowed", rules });
  return nbdPolicy(objects, { creds: "tls", authz: "allowed" }, logger);
}
