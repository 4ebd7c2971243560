// Objects that a command line written for the reference may name.

import { array, bool, enumeration, int, str, struct, union } from "./types.ts";

const eventLoop = { "?aio-max-batch": int, "?thread-pool-min": int, "?thread-pool-max": int } as const;

const iothread = struct("IothreadProperties", "A thread of the reference; this program has one loop.", {
  ...eventLoop,
  "?poll-max-ns": int,
  "?poll-grow": int,
  "?poll-shrink": int,
});

const secret = struct("SecretProperties", "A secret for later use.", {
  "?data": str,
  "?file": str,
  "?format": enumeration("QCryptoSecretFormat", ["raw", "base64"]),
  "?keyid": str,
  "?iv": str,
});

const limitNames = ["iops", "bps"].flatMap((unit) =>
  ["total", "read", "write"].flatMap((kind) => [
    `?${unit}-${kind}`,
    `?${unit}-${kind}-max`,
    `?${unit}-${kind}-max-length`,
  ]),
);

const limits = struct("ThrottleLimits", "Limits of requests and bytes per second.", {
  ...Object.fromEntries(limitNames.map((name) => [name, int])),
  "?iops-size": int,
});

const throttleGroup = struct("ThrottleGroupProperties", "Limits that nodes share.", { "?limits": limits });

const tlsBase = {
  "?verify-peer": bool,
  "?dir": str,
  "?endpoint": enumeration("QCryptoTLSCredsEndpoint", ["client", "server"]),
  "?priority": str,
} as const;

const tlsAnon = struct("TlsCredsAnonProperties", "", tlsBase);
const tlsPsk = struct("TlsCredsPskProperties", "", { ...tlsBase, "?username": str });
const tlsX509 = struct("TlsCredsX509Properties", "", {
  ...tlsBase,
  "?passwordid": str,
  "?sanity-check": bool,
});

const authzPolicy = enumeration("QAuthZListPolicy", ["deny", "allow"]);

/** Also what the file of an authz-listfile holds. */
export const authzListOptions = struct("AuthZListProperties", "Names of clients, and who may come in.", {
  "?policy": authzPolicy,
  "?rules": array(
    struct("QAuthZListRule", "", {
      match: str,
      policy: authzPolicy,
      "?format": enumeration("QAuthZListFormat", ["exact", "glob"]),
    }),
  ),
});

/** What `object-add` takes. */
export const objectOptions = union(
  "ObjectOptions",
  "An object with an id.",
  struct("ObjectOptionsBase", "", {
    "qom-type": enumeration("ObjectType", [
      "authz-list",
      "authz-listfile",
      "authz-simple",
      "iothread",
      "main-loop",
      "pr-manager-helper",
      "secret",
      "thread-context",
      "throttle-group",
      "tls-creds-anon",
      "tls-creds-psk",
      "tls-creds-x509",
    ]),
    id: str,
  }),
  "qom-type",
  {
    "authz-list": authzListOptions,
    "authz-listfile": struct("AuthZListFileProperties", "The same list, in a JSON file.", {
      filename: str,
      "?refresh": bool,
    }),
    "authz-simple": struct("AuthZSimpleProperties", "", { identity: str }),
    iothread,
    "main-loop": struct("MainLoopProperties", "", eventLoop),
    "pr-manager-helper": struct("PrManagerHelperProperties", "", { path: str }),
    secret,
    "thread-context": struct("ThreadContextProperties", "", {
      "?cpu-affinity": array(int),
      "?node-affinity": array(int),
    }),
    "throttle-group": throttleGroup,
    "tls-creds-anon": tlsAnon,
    "tls-creds-psk": tlsPsk,
    "tls-creds-x509": tlsX509,
  },
);
