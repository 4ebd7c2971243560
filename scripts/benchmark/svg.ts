/** Pixels with one digit: nobody sees more. */
export function roundPixels(pixels: number): number {
  return Math.round(pixels * 10) / 10;
}

/** Text as it may stand in XML, in attributes too. */
export function escapeXml(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}
