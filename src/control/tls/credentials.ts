// What tls-creds objects become: keys that were read and looked at, for the NBD server.

import { accessSync, constants, statSync } from "node:fs";
import path from "node:path";
import { createSecureContext, type TLSSocket, type TlsOptions } from "node:tls";
import { BlockError, errorMessage } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import { MiB } from "../../base/units.ts";
import { readWholeFile } from "../../sys/whole-file.ts";

/** Of certificates with all that are revoked. */
const FILE_BYTES_MAX = 16 * MiB;

export interface TlsCredentials {
  readonly endpoint: "client" | "server";
  /** What `tls.createServer` needs, or for a client `tls.connect`. */
  readonly options: TlsOptions;
  /** Whether a server learns who its clients are. */
  readonly knowsClients: boolean;
  /** Who the client is: the name in its certificate, or the user of its key. */
  identityOf(client: TLSSocket): string | undefined;
}

/** A directory of credentials. @throws BlockError EINVAL in QEMU's words */
export class CredentialFiles {
  readonly #directory: string;
  readonly #logger: Logger;

  constructor(directory: string | undefined, logger: Logger) {
    if (directory === undefined) throw new BlockError("EINVAL", "Missing 'dir' property value");
    this.#directory = directory;
    this.#logger = logger;
  }

  path(name: string): string {
    return path.join(this.#directory, name);
  }

  has(name: string): boolean {
    try {
      accessSync(this.path(name), constants.F_OK);
      return true;
    } catch {
      return false;
    }
  }

  /** @throws BlockError in QEMU's words when it cannot be read */
  read(name: string): Buffer {
    const file = this.path(name);
    return readWholeFile(file, FILE_BYTES_MAX, `Unable to access credentials ${file}`);
  }

  readOptional(name: string): Buffer | undefined {
    return this.has(name) ? this.read(name) : undefined;
  }

  /** Reads what nobody else should be able to, and warns where others are. */
  readSecret(name: string): Buffer {
    const bytes = this.read(name);
    const { mode } = statSync(this.path(name));
    if ((mode & 0o004) !== 0) {
      const file = this.path(name);
      this.#logger.warn(`${file} holds secret keys and can be read by everybody: chmod 600 ${file}`);
    }
    return bytes;
  }
}

/** Options that OpenSSL takes as a whole. @throws BlockError EINVAL with its reason */
export function checkedOptions(options: TlsOptions, place: string): TlsOptions {
  try {
    createSecureContext(options);
    return options;
  } catch (error) {
    throw new BlockError(
      "EINVAL",
      `The credentials in ${place} cannot be used: ${errorMessage(error)}`,
      error,
    );
  }
}
