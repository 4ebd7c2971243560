// The daemon's NBD server on a TCP port of the loopback address; guests reach it as 10.0.2.2.

import { freePort } from "../harness/free-port.ts";

/** The host as guests see it, on QEMU's own network. */
const HOST_OF_GUESTS = "10.0.2.2";

export interface TcpServer {
  readonly port: number;
  /** Arguments of the daemon. */
  readonly arguments: readonly string[];
  /** URI of an export, for QEMU and other programs of the host. */
  uri(exportName: string): string;
  /** What nbd-client in a guest takes to attach an export to a device. */
  clientWords(exportName: string, device: string): string;
}

/** A port that nobody has now; a daemon that is killed and started again keeps it. */
export async function tcpServer(): Promise<TcpServer> {
  const port = await freePort();
  return {
    port,
    arguments: ["--nbd-server", `addr.type=inet,addr.host=127.0.0.1,addr.port=${port}`],
    uri: (exportName) => `nbd://127.0.0.1:${port}/${exportName}`,
    clientWords: (exportName, device) => `${HOST_OF_GUESTS} ${port} ${device} -name ${exportName}`,
  };
}
