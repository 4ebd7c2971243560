// tls-creds-psk: users with a key each, in keys.psk as psktool writes it.
//
//   1. A server reads the file anew for each client, as the reference does: users come and go without a
//      restart.

import type { TLSSocket } from "node:tls";
import { BlockError } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import { type CredentialFiles, checkedOptions, type TlsCredentials } from "./credentials.ts";
import { priorityOptions } from "./priority.ts";

const FILE = "keys.psk";
const DH_FILE = "dh-params.pem";
/** What OpenSSL takes. */
const USER_BYTES_MAX = 128;
const KEY_BYTES_MAX = 256;

export interface PskSettings {
  readonly endpoint: "client" | "server";
  readonly username: string | undefined;
  readonly priority: string | undefined;
}

/** @throws BlockError EINVAL in QEMU's words, or with the line that is wrong */
export function pskCredentials(
  files: CredentialFiles,
  settings: PskSettings,
  logger: Logger,
): TlsCredentials {
  const { endpoint, username, priority } = settings;
  const keys = parseKeys(files.readSecret(FILE).toString("utf8"), files.path(FILE));
  const common = priorityOptions("psk", priority);
  if (endpoint === "client") return clientCredentials(keys, common, username ?? "qemu", files.path(FILE));
  if (username !== undefined)
    throw new BlockError("EINVAL", "username should not be set when endpoint=server");
  const users = new WeakMap<TLSSocket, string>();
  const keyOf = (client: TLSSocket, user: string): Buffer | null => {
    users.set(client, user);
    try {
      return parseKeys(files.read(FILE).toString("utf8"), files.path(FILE)).get(user) ?? null;
    } catch (error) {
      logger.warn(`a client with a pre-shared key is refused: ${(error as Error).message}`);
      return null;
    }
  };
  const dhparam = files.readOptional(DH_FILE) ?? "auto";
  const options = checkedOptions({ ...common, dhparam, pskCallback: keyOf }, files.path(FILE));
  return { endpoint, options, knowsClients: true, identityOf: (client) => users.get(client) };
}

function clientCredentials(
  keys: ReadonlyMap<string, Buffer>,
  common: object,
  user: string,
  place: string,
): TlsCredentials {
  const psk = keys.get(user);
  if (psk === undefined) throw new BlockError("EINVAL", `Username ${user} not found in PSK file ${place}`);
  // The type of node:tls has the server's callback only; the client's takes and gives other things.
  const options = { ...common, pskCallback: () => ({ identity: user, psk }) } as object;
  return { endpoint: "client", options, knowsClients: false, identityOf: () => undefined };
}

/** Keys by user. @throws BlockError EINVAL with the number of the line, never its content */
function parseKeys(text: string, place: string): Map<string, Buffer> {
  const keys = new Map<string, Buffer>();
  text.split(/\r?\n/).forEach((line, index) => {
    if (line === "") return;
    const colon = line.lastIndexOf(":");
    const [user, hex] = [line.slice(0, colon), line.slice(colon + 1)];
    const wrong = (reason: string) =>
      new BlockError("EINVAL", `${place}, line ${index + 1}: ${reason}; expected USER:KEY, the key in hex`);
    if (colon <= 0) throw wrong("no user and key");
    if (Buffer.byteLength(user) > USER_BYTES_MAX)
      throw wrong(`the user is longer than ${USER_BYTES_MAX} bytes`);
    if (!/^(?:[0-9a-fA-F]{2})+$/.test(hex)) throw wrong("the key is not hex");
    if (hex.length > 2 * KEY_BYTES_MAX) throw wrong(`the key is longer than ${KEY_BYTES_MAX} bytes`);
    keys.set(user, Buffer.from(hex, "hex"));
  });
  return keys;
}
