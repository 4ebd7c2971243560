// tls-creds-x509: certificates, in files of the names that the reference gives them.
//
//   ca-cert.pem  ca-crl.pem  server-cert.pem  server-key.pem  client-cert.pem  client-key.pem  dh-params.pem
//
//   1. What would fail with the first client is found when the object is made: dates, purpose, key, issuer.
//      `sanity-check=off` leaves dates, purpose and issuer out.

import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import type { TlsOptions } from "node:tls";
import { BlockError, errorMessage } from "../../base/errors.ts";
import { systemWallClock } from "../wall-clock.ts";
import { type CredentialFiles, checkedOptions, type TlsCredentials } from "./credentials.ts";
import { priorityOptions } from "./priority.ts";

const CA = "ca-cert.pem";
const PURPOSES = { server: "1.3.6.1.5.5.7.3.1", client: "1.3.6.1.5.5.7.3.2" } as const;
const ANY_PURPOSE = "2.5.29.37.0";

export interface X509Settings {
  readonly endpoint: "client" | "server";
  readonly verifyPeer: boolean;
  readonly sanityCheck: boolean;
  readonly priority: string | undefined;
  /** What the private key is encrypted with. */
  readonly passphrase: string | undefined;
}

/** @throws BlockError EINVAL, mostly in QEMU's words */
export function x509Credentials(
  files: CredentialFiles,
  settings: X509Settings,
  nowMs: number = systemWallClock.nowMicroseconds() / 1000,
): TlsCredentials {
  const { endpoint, verifyPeer } = settings;
  const ca = files.read(CA);
  const authorities = certificatesIn(ca, files.path(CA));
  const own = ownCertificate(files, settings);
  if (settings.sanityCheck) {
    for (const one of authorities) checkAuthority(one, files.path(CA), nowMs);
    if (own !== undefined) checkOwn(own.certificates, authorities, { files, endpoint, nowMs });
  }
  const crl = files.readOptional("ca-crl.pem");
  const options: TlsOptions = {
    ...priorityOptions("x509", settings.priority),
    ca,
    ...(crl === undefined ? {} : { crl }),
    ...own?.options,
    rejectUnauthorized: verifyPeer,
    ...(endpoint === "server" && {
      requestCert: verifyPeer,
      dhparam: files.readOptional("dh-params.pem") ?? "auto",
    }),
  };
  return {
    endpoint,
    options: checkedOptions(options, files.path("")),
    knowsClients: verifyPeer,
    identityOf: (client) => distinguishedName(client.getPeerX509Certificate()),
  };
}

/**
 * The name that authorization goes by, as GnuTLS writes it: "C=GB,O=Example,CN=one", in the certificate's
 * order.
 */
function distinguishedName(certificate: X509Certificate | undefined): string | undefined {
  const parts = certificate?.subject.split("\n");
  return parts?.map((part) => part.replace(/^emailAddress=/, "EMAIL=")).join(",");
}

interface Own {
  readonly certificates: readonly X509Certificate[];
  readonly options: Pick<TlsOptions, "cert" | "key" | "passphrase">;
}

/** A client may do without. */
function ownCertificate(files: CredentialFiles, settings: X509Settings): Own | undefined {
  const [certFile, keyFile] = [`${settings.endpoint}-cert.pem`, `${settings.endpoint}-key.pem`];
  if (settings.endpoint === "client" && !files.has(certFile) && !files.has(keyFile)) return undefined;
  const cert = files.read(certFile);
  const certificates = certificatesIn(cert, files.path(certFile));
  const key = files.readSecret(keyFile);
  const { passphrase } = settings;
  const pair = `certificate '${files.path(certFile)}' & key '${files.path(keyFile)}'`;
  if (!certificates[0]!.checkPrivateKey(privateKey(key, passphrase, pair))) {
    const reason = "The certificate and the given key do not match.";
    throw new BlockError("EINVAL", `Cannot load ${pair}: ${reason}`);
  }
  return { certificates, options: { cert, key, ...(passphrase === undefined ? {} : { passphrase }) } };
}

function privateKey(key: Buffer, passphrase: string | undefined, pair: string): KeyObject {
  try {
    return createPrivateKey({ key, ...(passphrase === undefined ? {} : { passphrase }) });
  } catch (error) {
    const isEncrypted = key.includes("ENCRYPTED");
    const wrong = passphrase === undefined ? "give its password with passwordid" : "the password is wrong";
    const reason = isEncrypted ? `the key is encrypted: ${wrong}` : errorMessage(error);
    throw new BlockError("EINVAL", `Cannot load ${pair}: ${reason}`, error);
  }
}

function certificatesIn(pem: Buffer, file: string): X509Certificate[] {
  const blocks = pem.toString("latin1").match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g);
  try {
    if (blocks !== null) return blocks.map((block) => new X509Certificate(block));
  } catch (error) {
    throw new BlockError("EINVAL", `Unable to import certificate ${file}: ${errorMessage(error)}`, error);
  }
  throw new BlockError("EINVAL", `Unable to import certificate ${file}: it holds no certificate in PEM form`);
}

function checkAuthority(certificate: X509Certificate, file: string, nowMs: number): void {
  checkDates(certificate, "CA", file, nowMs);
  if (!certificate.ca) {
    throw new BlockError("EINVAL", `The certificate ${file} basic constraints do not show a CA`);
  }
}

function checkOwn(
  [own, ...others]: readonly X509Certificate[],
  authorities: readonly X509Certificate[],
  at: { readonly files: CredentialFiles; readonly endpoint: "client" | "server"; readonly nowMs: number },
): void {
  const { files, endpoint, nowMs } = at;
  const file = files.path(`${endpoint}-cert.pem`);
  checkDates(own!, endpoint, file, nowMs);
  if (own!.ca) {
    throw new BlockError(
      "EINVAL",
      `The certificate ${file} basic constraints show a CA, but we need one for a ${endpoint}`,
    );
  }
  const purposes: readonly string[] | undefined = own!.keyUsage;
  if (purposes !== undefined && !purposes.includes(PURPOSES[endpoint]) && !purposes.includes(ANY_PURPOSE)) {
    throw new BlockError("EINVAL", `Certificate ${file} purpose does not allow use with a TLS ${endpoint}`);
  }
  if (!leadsTo(own!, others, authorities)) {
    const reason = "The certificate hasn't got a known issuer";
    throw new BlockError(
      "EINVAL",
      `Our own certificate ${file} failed validation against ${files.path(CA)}: ${reason}`,
    );
  }
}

/** Whether a chain of issuers, some of which the file itself may hold, ends at an authority. */
function leadsTo(
  certificate: X509Certificate,
  between: readonly X509Certificate[],
  authorities: readonly X509Certificate[],
): boolean {
  const issued = (issuer: X509Certificate) =>
    certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
  if (authorities.some(issued)) return true;
  const next = between.findIndex(issued);
  if (next < 0) return false;
  return leadsTo(between[next]!, between.toSpliced(next, 1), authorities);
}

function checkDates(certificate: X509Certificate, kind: string, file: string, nowMs: number): void {
  const { validFrom, validTo } = certificate;
  const what = `The ${kind} certificate ${file}`;
  if (nowMs > Date.parse(validTo)) {
    throw new BlockError("EINVAL", `${what} has expired: it was good until ${validTo}`);
  }
  if (nowMs < Date.parse(validFrom)) {
    throw new BlockError("EINVAL", `${what} is not yet active: it is good from ${validFrom}`);
  }
}
