// TLS under NBD: what STARTTLS turns an accepted socket into.
//
//   1. The client is let in by the handshake first (certificate, pre-shared key), then by the policy.
//   2. No session is resumed: a resumed one would bring neither certificate nor user name, and none is
//      renegotiated.
//   3. Whatever the peer sends instead of a handshake ends its own connection and nothing else.

import { constants } from "node:crypto";
import type net from "node:net";
import tls from "node:tls";

/** Who may come in, and by which keys. */
export interface TlsPolicy {
  /** Keys, versions and ciphers, as `tls.createServer` takes them. */
  readonly options: tls.TlsOptions;
  /** Why a client whose handshake has succeeded is turned away all the same; undefined: it may come in. */
  refusal(client: tls.TLSSocket): string | undefined;
}

export interface TlsEvents {
  /** `socket` replaces the plain one; it has not begun to read. */
  secured(socket: tls.TLSSocket): void;
  /** The client is not let in; the plain socket is to be closed. */
  failed(reason: string): void;
}

/** Handshakes have the server's own deadline; this one only ends what has none. */
const HANDSHAKE_MS_MAX = 120_000;

/** Makes plain connections secure ones; one for all connections of a server: keys are costly to read. */
export class TlsAcceptor {
  readonly #policy: TlsPolicy;
  readonly #server: tls.Server;
  readonly #waiting = new WeakMap<net.Socket, TlsEvents>();

  constructor(policy: TlsPolicy) {
    this.#policy = policy;
    const { secureOptions = 0, ...options } = policy.options;
    this.#server = tls.createServer({
      minVersion: "TLSv1.2",
      ...options,
      handshakeTimeout: HANDSHAKE_MS_MAX,
      pauseOnConnect: true,
      secureOptions: secureOptions | constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
    });
    this.#server.on("secureConnection", (socket) => this.#arrived(socket));
    this.#server.on("tlsClientError", (error, socket) => this.#eventsOf(socket)?.failed(reasonOf(error)));
  }

  /** Begins the handshake on a socket that is not read any more. One of the events is told later. */
  secure(socket: net.Socket, events: TlsEvents): void {
    // A peer that ends before it is in shall not be waited for; one that is in may end its side first.
    socket.allowHalfOpen = false;
    this.#waiting.set(socket, events);
    this.#server.emit("connection", socket);
  }

  #arrived(socket: tls.TLSSocket): void {
    const events = this.#eventsOf(socket);
    if (events === undefined) {
      socket.destroy();
      return;
    }
    socket.allowHalfOpen = true;
    const refusal = this.#policy.refusal(socket);
    if (refusal === undefined) events.secured(socket);
    else events.failed(refusal);
  }

  // Node has no public way from a secure socket to the plain one below it. Where it changes its private one
  // nobody is let in, and the tests notice.
  #eventsOf(socket: tls.TLSSocket): TlsEvents | undefined {
    const plain = (socket as unknown as { readonly _parent?: net.Socket })._parent;
    return plain === undefined ? undefined : this.#waiting.get(plain);
  }
}

function reasonOf(error: Error & { readonly code?: unknown; readonly reason?: unknown }): string {
  const { code, reason } = error;
  const words = typeof reason === "string" ? reason : error.message;
  return `TLS handshake failed: ${words}${typeof code === "string" ? ` (${code})` : ""}`;
}
