import type { TlsPolicy } from "../../../nbd/tls.ts";
import { BlockError } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import type { ObjectTable } from "../objects.ts";

/**
 * Who may come in to an NBD server with credentials `creds` and, of those, by the object `authz`; undefined
 * without TLS.
 * @throws BlockError EINVAL in QEMU's words
 */
export function nbdPolicy(
  objects: ObjectTable,
  { creds, authz }: { readonly creds: string | undefined; readonly authz: string | undefined },
  logger: Logger,
): TlsPolicy | undefined {
  if (creds === undefined) {
    if (authz === undefined) return undefined;
    throw new BlockError("EINVAL", "TLS authorization is not supported without TLS credentials");
  }
  const credentials = objects.serverCredentials(creds);
  if (authz !== undefined && !credentials.knowsClients) {
    const hint = "take verify-peer=off away from the credentials, or tls-authz from the server";
    throw new BlockError("EINVAL", `tls-authz needs to know who the clients are: ${hint}`);
  }
  const refusal: TlsPolicy["refusal"] = (client) => {
    if (authz === undefined) return undefined;
    const identity = credentials.identityOf(client);
    const verdict = identity === undefined ? false : objects.authorize(authz, identity);
    if (verdict === true) return undefined;
    if (verdict === false)
      return `TLS x509 authz check for ${identity ?? "a client without a name"} is denied`;
    logger.warn(`an NBD client is refused: Cannot find QAuthZ object ID ${authz}; add it with object-add`);
    return `Cannot find QAuthZ object ID ${authz}`;
  };
  return { options: credentials.options, refusal };
}
