const IDENTIFIER = /^[A-Za-z][A-Za-z0-9._-]*$/;

/** Ids of objects, exports, jobs, character devices: a letter, then letters, digits, '-', '.', '_'. */
export function isIdentifier(text: string): boolean {
  return IDENTIFIER.test(text);
}
