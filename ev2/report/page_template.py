"""The frame and the looks of the report's page: no script, light and dark, phones."""

# The policy lets the browser fetch nothing at all.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$status · <code>$folder</code></p>
<p class="small">$versions</p>
</header>
<main>
$sections
</main>
</body>
</html>
"""

STYLE = """
:root {
  --page: #f3f5f7; --card: #ffffff; --text: #1f2328; --muted: #59636e;
  --line: #e1e5ea; --accent: #0b66b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #161b22; --text: #e6edf3; --muted: #9aa4af;
    --line: #2d343d; --accent: #5db7f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1240px; padding: 1.5rem 1rem 3rem;
  background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem; }
header p { color: var(--muted); margin: .3rem 0 0; overflow-wrap: anywhere; }
section > p { color: var(--muted); max-width: 46rem; margin: .5rem 0; }
header .small { font-size: .8rem; }
.note { border-left: 3px solid var(--accent); padding-left: .7rem; }
.tiles {
  display: grid; gap: .6rem; margin-bottom: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(134px, 1fr));
}
.tile, .scroll, .figures figure {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.tile { padding: .6rem .8rem; }
.label { color: var(--muted); font-size: .8rem; }
.value { font-size: 1.25rem; font-weight: 600; white-space: nowrap; }
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; width: 100%; font-size: .86rem;
  font-variant-numeric: tabular-nums;
}
th, td { padding: .38rem .6rem; text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--line); }
tr + tr td { border-top: 1px solid var(--line); }
.words { text-align: left; }
td.words { white-space: normal; overflow-wrap: anywhere; min-width: 4em; }
th:first-child, td:first-child {
  position: sticky; left: 0; background: var(--card);
}
.figures, .columns {
  display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
}
.columns { margin-top: .8rem; }
.figures figure { margin: 0; padding: .2rem 1rem .9rem; }
@media (max-width: 480px) {
  body { padding: 1rem .6rem 2rem; }
  th, td { padding: .38rem .4rem; }
  .figures figure { padding: .2rem .5rem .8rem; }
}
.figures h3 { margin: .7rem 0; }
.figures img { display: block; width: 100%; max-width: 640px; height: auto; }
figcaption { color: var(--muted); font-size: .82rem; }
.samples {
  display: grid; gap: .6rem .5rem; grid-template-columns: repeat(4, 1fr);
}
@media (min-width: 480px) { .samples { grid-template-columns: repeat(6, 1fr); } }
@media (min-width: 900px) { .samples { grid-template-columns: repeat(12, 1fr); } }
.samples figure { margin: 0; min-width: 0; }
.samples img { display: block; width: 100%; border-radius: 4px; }
.coarse img { image-rendering: pixelated; }
.samples figcaption {
  font-size: .74rem; line-height: 1.25; margin-top: .2rem; overflow-wrap: anywhere;
}
details { margin: .6rem 0; }
summary { cursor: pointer; }
details .scroll { margin-top: .5rem; }
"""
