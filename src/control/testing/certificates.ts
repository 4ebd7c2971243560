// For tests: certificates and keys, made by the `openssl` program, under the names that tls-creds-x509 wants.

import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";

export const HAS_OPENSSL = spawnSync("openssl", ["version"]).status === 0;

const CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const PURPOSES = { server: "serverAuth", client: "clientAuth" } as const;

export interface CertificatePlan {
  readonly kind: "server" | "client";
  readonly subject: string;
  /** What the key is encrypted with. */
  readonly password?: string;
  /** What it may be used for, where that is to be wrong. */
  readonly purpose?: string;
}

/** A certificate authority of its own in a directory. */
export class Authority {
  readonly directory: string;

  constructor(directory: string, name = "Test CA") {
    this.directory = directory;
    mkdirSync(directory, { recursive: true });
    this.#run("req", "-x509", ...CURVE, "-nodes", "-keyout", "ca-key.pem", "-out", "ca-cert.pem",
      "-subj", `/CN=${name}`, "-days", "30", "-addext", "keyUsage=critical,keyCertSign,cRLSign"); // biome-ignore format: a command line
  }

  /** Makes KIND-cert.pem and KIND-key.pem in `directory`, with ca-cert.pem. */
  issue(directory: string, { kind, subject, password, purpose = PURPOSES[kind] }: CertificatePlan): void {
    mkdirSync(directory, { recursive: true });
    const key = path.join(directory, `${kind}-key.pem`);
    const locked = password === undefined ? ["-nodes"] : ["-passout", `pass:${password}`];
    this.#run("req", "-new", ...CURVE, ...locked, "-keyout", key, "-out", "request.pem", "-subj", subject);
    const names = kind === "server" ? "subjectAltName=DNS:localhost,IP:127.0.0.1\n" : "";
    const usage = "keyUsage=critical,digitalSignature,keyEncipherment\nbasicConstraints=critical,CA:FALSE\n";
    writeFileSync(this.#path("extensions"), `${names}${usage}extendedKeyUsage=${purpose}\n`);
    const certificate = path.join(directory, `${kind}-cert.pem`);
    this.#run("x509", "-req", "-in", "request.pem", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem",
      "-CAcreateserial", "-days", "30", "-extfile", "extensions", "-out", certificate); // biome-ignore format: a command line
    if (directory !== this.directory)
      copyFileSync(this.#path("ca-cert.pem"), path.join(directory, "ca-cert.pem"));
  }

  /** Makes ca-crl.pem, which revokes a certificate. */
  revoke(certificate: string): void {
    const lines = "[ca]\ndefault_ca=here\n[here]\ndatabase=index\ndefault_md=sha256\ndefault_crl_days=30\n";
    writeFileSync(this.#path("ca.conf"), lines);
    writeFileSync(this.#path("index"), "");
    const by = ["-config", "ca.conf", "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem"];
    this.#run("ca", ...by, "-revoke", certificate);
    this.#run("ca", ...by, "-gencrl", "-out", "ca-crl.pem");
  }

  #path(name: string): string {
    return path.join(this.directory, name);
  }

  #run(...args: readonly string[]): void {
    execFileSync("openssl", args, { cwd: this.directory, stdio: ["ignore", "ignore", "pipe"] });
  }
}
