"""The page of a deck: a template for nbconvert, with its style and its script.

Without a script, and on paper, all slides stand below each other.
"""

TEMPLATE = r"""{%- macro text(source) -%}{{ source | markdown2html }}{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ nb.cells[0].metadata.slide.heading | escape }}</title>
<style>
:root { color-scheme: light dark; --quiet: #5b6472; --line: #d5d9e0; --blue: #2166ac;
  --ground: #fff; --ink: #16191d }
@media (prefers-color-scheme: dark) { :root { --quiet: #a3adbb; --line: #3a414d; --blue: #7fb5dd;
  --ground: #16191d; --ink: #eceff3 } }
* { box-sizing: border-box }
html { font: clamp(16px, 1.1vw + 1vh, 30px)/1.4 system-ui, sans-serif; background: var(--ground);
  color: var(--ink) }
body { margin: 0 }
section { display: flex; flex-direction: column; gap: 1rem; padding: 1.2rem 5vw 3rem;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word }
section > * { flex: none; max-width: 100%; min-width: 0 }
h1, h2, p, ol { margin: 0 }
h1 { font-size: 2em; line-height: 1.15 } h2 { font-size: 1.1em; color: var(--quiet) }
h1 p, h2 p, figcaption p { display: inline }
.title, .section, .prediction, .explorer { justify-content: center }
.section h2 { font-size: 1.7em; color: inherit }
.title .body, .prediction .body { font-size: 1.25em; max-width: 34em }
.recap .body { max-width: 40em } ol { padding-left: 1.4em } li { margin-bottom: .5rem }
strong { color: var(--blue) }
figure { margin: 0; display: flex; flex-direction: column; gap: .8rem }
figure img { width: min(100%, 62vh * var(--wide), var(--twice)); height: auto; background: #fff;
  border-radius: .3rem; align-self: flex-start }
figcaption, .explorer .body { color: var(--quiet); max-width: 46em }
mjx-container { max-width: 100%; overflow-x: auto; overflow-y: hidden }
mjx-container[display="true"] { display: block }
nav { display: none }
.moving section { display: none; border: 0; min-height: 100vh }
.moving section.now { display: flex }
.moving nav { position: fixed; right: 0; bottom: 0; display: flex; align-items: center;
  background: var(--ground) }
nav button { font: inherit; min-width: 2.4rem; min-height: 2.4rem; border: 0; background: none;
  color: inherit; cursor: pointer }
nav span { color: var(--quiet); font-size: .8em; min-width: 4em; text-align: center }
@media print { .moving nav { display: none } .moving section { display: flex; min-height: 0 }
  section { break-after: page; border: 0 } }
</style>
{%- if resources.mathjax %}
<script>
MathJax = {tex: {inlineMath: [["$", "$"], ["\\(", "\\)"]], processEscapes: true, tags: "none"},
  options: {enableMenu: false, ignoreHtmlClass: "plain"}};
</script>
<script defer src="{{ resources.mathjax }}"></script>
{%- endif %}
</head><body>
{%- for cell in nb.cells %}
{%- set slide = cell.metadata.slide %}
<section class="{{ slide.kind }}" id="{{ loop.index }}"
 aria-label="slide {{ loop.index }} of {{ loop.length }}">
{%- set level = "h1" if slide.kind == "title" else "h2" %}
<{{ level }}>{{ text(slide.heading) }}</{{ level }}>
{%- if slide.kind == "figure" %}
{%- set width, height = slide.size %}
<figure><img width="{{ width }}" height="{{ height }}"
 style="--wide: {{ width / height }}; --twice: {{ 2 * width }}px"
 src="data:image/png;base64,{{ slide.picture }}" alt="{{ slide.alternative | escape }}">
{%- if slide.text %}<figcaption>{{ text(slide.text) }}</figcaption>{% endif %}</figure>
{%- elif slide.text %}
<div class="body">{{ text(slide.text) }}</div>
{%- endif %}
</section>
{%- endfor %}
<nav class="plain" aria-label="slides"><button type="button" aria-label="back">◀</button>
<span role="status"></span><button type="button" aria-label="on">▶</button></nav>
<script>
const all = [...document.querySelectorAll("section")];
const [back, on] = document.querySelectorAll("nav button");
const place = document.querySelector("nav span");
const now = () => Math.max(0, all.findIndex(slide => slide.classList.contains("now")));
function show(number) {
  number = Math.min(Math.max(number, 0), all.length - 1);
  all.forEach((slide, n) => slide.classList.toggle("now", n === number));
  place.textContent = `${number + 1} / ${all.length}`;
  [back.disabled, on.disabled] = [number === 0, number === all.length - 1];
  scrollTo(0, 0);
  if (location.hash !== `#${number + 1}`) history.replaceState(null, "", `#${number + 1}`);
}
const asked = () => show((parseInt(location.hash.slice(1)) || 1) - 1);
const steps = {ArrowRight: 1, ArrowLeft: -1, PageDown: 1, PageUp: -1, " ": 1, Home: -1e9, End: 1e9};
addEventListener("keydown", event => {
  const held = event.ctrlKey || event.altKey || event.metaKey;
  const pressed = event.key === " " && event.target.tagName === "BUTTON";  // that is a click
  if (held || pressed || !(event.key in steps)) return;
  event.preventDefault();
  show(now() + steps[event.key]);
});
let start;
addEventListener("touchstart", event => { start = event.touches[0]; }, {passive: true});
addEventListener("touchend", event => {
  const end = event.changedTouches[0];
  const x = end.clientX - start.clientX, y = end.clientY - start.clientY;
  if (Math.abs(x) > 60 && Math.abs(x) > 2 * Math.abs(y)) show(now() - Math.sign(x));
});
back.addEventListener("click", () => show(now() - 1));
on.addEventListener("click", () => show(now() + 1));
addEventListener("hashchange", asked);
document.body.classList.add("moving");
asked();
</script>
</body></html>
"""
