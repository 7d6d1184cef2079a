"""A page that renders every picture of the documentation: ``page.py PAGE FILE ...``; prints how many there are."""

import json
import re
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
PAGE = """<!doctype html><meta charset="utf-8"><pre id="said"></pre>
<script src="%(script)s"></script><script>
const pictures = %(pictures)s;
mermaid.initialize({startOnLoad: false});
(async () => {
  const said = [];
  for (const [place, [where, text]] of pictures.entries()) {
    try {
      const {svg} = await mermaid.render(`picture${place}`, text);
      said.push(svg.startsWith('<svg') && !svg.includes('Syntax error') ? `good ${where}` : `bad ${where}`);
    } catch (error) {
      said.push(`bad ${where}: ${error.message.split('\\n').slice(0, 4).join(' | ')}`);
    }
  }
  document.getElementById('said').textContent = said.join('\\n') + '\\nall of them\\n';
})();
</script>
"""


def main() -> None:
    page, *files = map(Path, sys.argv[1:])
    pictures = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        for found in re.finditer(r"^```mermaid\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            pictures.append((f"{file}:{text.count(chr(10), 0, found.start()) + 1}", found[1]))
    content = PAGE % {"script": SCRIPT.resolve().as_uri(), "pictures": json.dumps(pictures).replace("</", "<\\/")}
    page.write_text(content, encoding="utf-8")
    print(len(pictures))


if __name__ == "__main__":
    main()
