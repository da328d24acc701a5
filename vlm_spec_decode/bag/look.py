"""What the report looks like and how its timeline moves: a style sheet and a script of its own."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light } body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem;
margin: 2rem auto; padding: 0 1rem; color: #222 } h1 { margin-bottom: 0 } .sub { color: #666 }
table { border-collapse: collapse; font-size: 14px } td, th { padding: .25rem .9rem .25rem 0;
text-align: right; border-bottom: 1px solid #eee } td:first-child, th:first-child { text-align: left }
.ci { color: #888; font-size: 12px } .bad { color: #b3261e } #now { display: grid; gap: 1rem;
grid-template-columns: 14rem 1fr; min-height: 11rem; margin: .6rem 0 }
#now img { width: 100%; border-radius: 4px }
.a { background: #d9ead3 } .t { background: #f4d9c6 } .tokens span { padding: 0 2px; border-radius: 2px }
.lead { font-size: 16px } .wide { overflow-x: auto } svg { min-width: 38rem; max-width: 100%; height: auto }
#now div, .worst div { min-width: 0 }
input[type=range] { width: 100% } .strip { display: flex; height: 18px }
.strip i.here { outline: 3px solid #222; z-index: 1 }
.strip i { flex: 1; cursor: pointer; border-right: 1px solid #fff } .worst { display: grid; gap: .4rem 1rem;
grid-template-columns: 9rem 1fr; margin: .8rem 0; break-inside: avoid } .worst img { width: 100% }
@media (max-width: 40rem) { #now, .worst { grid-template-columns: 1fr } .worst img { width: 14rem } }
@media print { #scrub, .strip { display: none } svg { min-width: 0 } h2, svg { break-after: avoid }
* { print-color-adjust: exact } }
"""

SCRIPT = """
const D = JSON.parse(document.getElementById('data').textContent), $ = i => document.getElementById(i);
function words(r) { return r.text.split(' ').flatMap((t, i) => {
  const s = document.createElement('span'); s.textContent = t; s.className = r.fates[i] || '';
  return [s, ' '] }) }
function show(i) { const r = D.rows[D.order[i]]; if (!r) return; $('at').value = i;
  $('pic').src = D.thumbs[r.q] ? 'data:image/jpeg;base64,' + D.thumbs[r.q] : '';
  $('what').textContent = r.bag + ', ' + r.at + ' s: “' + r.instruction + '”';
  $('done').textContent = r.history.length ? 'after ' + r.history.join(' ') : '';
  $('says').replaceChildren(...words(r));
  $('label').textContent = r.error || r.known;
  $('label').className = r.error ? 'bad' : '';
  document.querySelectorAll('.strip i').forEach((e, k) => e.classList.toggle('here', k === i));
  $('cost').textContent = r.cell + ': ' + r.total + ' s, ' + r.passes + ' target passes, '
    + r.accepted + ' of ' + r.drafted + ' drafted tokens accepted' }
$('at').addEventListener('input', e => show(+e.target.value));
document.querySelectorAll('.strip i').forEach((e, i) => e.addEventListener('click', () => show(i)));
document.querySelectorAll('img[data-q]').forEach(e => {
  if (D.thumbs[e.dataset.q]) e.src = 'data:image/jpeg;base64,' + D.thumbs[e.dataset.q] });
document.querySelectorAll('.tokens[data-row]').forEach(
  e => e.replaceChildren(...words(D.rows[e.dataset.row])));
show(D.first);
"""
