// Objects of --object and object-add, by id.
//
//   1. What they name (files, other secrets) is read when they are made: an object that could not work is not
//      made.
//   2. The event loop needs no iothread, and limits of a throttle group have no filter yet: these are kept
//      and mean nothing here.
//   3. Credentials that a server uses stay in use when their object goes, as in the reference. Who may come
//      in is looked up for each client: without the object nobody may.

import { BlockError } from "../base/errors.ts";
import { type Logger, silentLogger } from "../base/logger.ts";
import { type Authorization, fileAuthorization, listAuthorization } from "./authorization.ts";
import { isIdentifier } from "./identifiers.ts";
import type { objectOptions } from "./qapi/object.ts";
import type { Infer } from "./qapi/types.ts";
import { secretValue } from "./secret.ts";
import { CredentialFiles, type TlsCredentials } from "./tls/credentials.ts";
import { pskCredentials } from "./tls/psk.ts";
import { x509Credentials } from "./tls/x509.ts";

export type ObjectOptions = Infer<typeof objectOptions>;
type TlsOptions = Extract<ObjectOptions, { "qom-type": `tls-creds-${string}` }>;

/** An object, with what it was made into. */
interface Kept {
  readonly type: ObjectOptions["qom-type"];
  readonly secret?: Buffer;
  readonly credentials?: TlsCredentials;
  readonly authorization?: Authorization;
}

export class ObjectTable {
  readonly #objects = new Map<string, Kept>();
  readonly #logger: Logger;

  constructor(logger: Logger = silentLogger) {
    this.#logger = logger;
  }

  /** @throws BlockError EINVAL, EEXIST in QEMU's words */
  add(options: ObjectOptions): void {
    const { id } = options;
    if (!isIdentifier(id)) throw new BlockError("EINVAL", "Parameter 'id' expects an identifier");
    if (this.#objects.has(id)) throw duplicateObject(id);
    this.#objects.set(id, this.#make(options));
  }

  remove(id: string): void {
    if (!this.#objects.delete(id)) throw new BlockError("EINVAL", `object '${id}' not found`);
  }

  /** @throws BlockError EINVAL in QEMU's words when there is no such iothread */
  checkIothread(id: string): void {
    if (this.#objects.get(id)?.type === "iothread") return;
    throw new BlockError("EINVAL", `iothread "${id}" not found`);
  }

  /** Credentials of a server. @throws BlockError EINVAL in QEMU's words */
  serverCredentials(id: string): TlsCredentials {
    const kept = this.#objects.get(id);
    if (kept === undefined) throw new BlockError("EINVAL", `No TLS credentials with id '${id}'`);
    const { credentials } = kept;
    if (credentials === undefined) {
      throw new BlockError("EINVAL", `Object with id '${id}' is not TLS credentials`);
    }
    if (credentials.endpoint === "server") return credentials;
    throw new BlockError("EINVAL", "Expected TLS credentials for a server endpoint");
  }

  /** Whether a client may come in; undefined: there is no authz object of this id. */
  authorize(id: string, identity: string): boolean | undefined {
    return this.#objects.get(id)?.authorization?.(identity);
  }

  #make(options: ObjectOptions): Kept {
    const type = options["qom-type"];
    switch (options["qom-type"]) {
      case "secret":
        return { type, secret: secretValue(options, (id) => this.#secret(id)) };
      case "authz-simple": {
        const { identity } = options;
        return { type, authorization: (client) => client === identity };
      }
      case "authz-list":
        return { type, authorization: listAuthorization(options) };
      case "authz-listfile":
        return { type, authorization: fileAuthorization(options, this.#logger) };
      case "tls-creds-x509":
      case "tls-creds-psk":
      case "tls-creds-anon":
        return { type, credentials: this.#credentials(options) };
      default:
        return { type };
    }
  }

  #credentials(options: TlsOptions): TlsCredentials {
    const { dir, endpoint = "client", priority } = options;
    if (options["qom-type"] === "tls-creds-anon") {
      const hint = "use tls-creds-psk or tls-creds-x509";
      const reason = "it would keep nobody out who sits between client and server";
      throw new BlockError(
        "ENOTSUP",
        `TLS without keys (tls-creds-anon) is not supported: ${reason}; ${hint}`,
      );
    }
    const files = new CredentialFiles(dir, this.#logger);
    if (options["qom-type"] === "tls-creds-psk") {
      return pskCredentials(files, { endpoint, priority, username: options.username }, this.#logger);
    }
    const { passwordid } = options;
    return x509Credentials(files, {
      endpoint,
      priority,
      verifyPeer: options["verify-peer"] ?? true,
      sanityCheck: options["sanity-check"] ?? true,
      passphrase: passwordid === undefined ? undefined : this.#secret(passwordid).toString("utf8"),
    });
  }

  #secret(id: string): Buffer {
    const secret = this.#objects.get(id)?.secret;
    if (secret === undefined) throw new BlockError("EINVAL", `No secret with id '${id}'`);
    return secret;
  }
}

/** The words for an id that is taken; on a command line, for character devices too. */
export function duplicateObject(id: string): BlockError {
  return new BlockError("EEXIST", `attempt to add duplicate property '${id}' to object (type 'container')`);
}
