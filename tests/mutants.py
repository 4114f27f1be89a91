"""Break the kernels on purpose, one line at a time, and expect the laws to fail each time: ``make mutants``.

Each mutant is an edit of native/. What it touches is compiled for the best instruction set of this machine only, with
-O1, and linked beside a copy of the package; the tests of that instruction set run against it. Words given as arguments
choose the mutants that are described by all of them.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
MUTANTS = [
    (
        "rows.cpp",
        "store(last, load_some(z + i, 1, n - i, static_cast<F>(-infinity)));",
        "store(last, load_some(z + i, 1, n - i, F(0)));",
        "a tail padded with logit 0",
    ),
    (
        "rows.cpp",
        "const double factor = gap > 0 ? decay(level[0], higher[0]) : 0;",
        "const double factor = 1;",
        "no rescaling when the maximum grows",
    ),
    ("rows.cpp", "moments.add(gap * terms.total);", "", "the moment not shifted when the maximum grows"),
    (
        "rows.cpp",
        "select(masses.total != 0.0, masses.total * gap, vec_double<F>{})",
        "masses.total * gap",
        "0 times infinity when the maximum grows",
    ),
    (
        "rows.cpp",
        "(__builtin_popcount(lanes_of(tie)) - 1);",
        "__builtin_popcount(lanes_of(tie));",
        "the maximum counted with the rest",
    ),
    ("rows.cpp", "e = tie ? zero : term<F>(top, from);", "e = term<F>(top, from);", "ties counted twice"),
    (
        "rows.cpp",
        "return smaller(y, splat(std::numeric_limits<F>::max())) * e;",
        "return y * e;",
        "0 times infinity in the moment",
    ),
    (
        "rows.cpp",
        "(weight[k] != zero) & (zk != level) ? (level - zk) * weight[k] : zero;",
        "(level - zk) * weight[k];",
        "0 times infinity in the spread",
    ),
    ("rows.cpp", "lost += (total - (sum - back)) + (v - back);", "", "what the sum of doubles rounds off is lost"),
    (
        "rows.cpp",
        "const double total = factor * (1 + lost.rest);",
        "const double total = factor * lost.rest;",
        "merge forgets the lesser maximum",
    ),
    ("rows.cpp", "(factor > 0 ? gap : 0) * total", "gap * total", "0 times infinity in merge"),
    ("rows.cpp", "(lost.mass != 0 ? gap * lost.mass : 0);", "0;", "merge does not shift the spread"),
    ("rows.cpp", "z == max ? 1 : z == z ? 0 : nan;", "z == max ? 1 : 0;", "NaN beside an infinite maximum forgotten"),
    (
        "rows.cpp",
        "to = k + 1 < parts ? from + segment : row.classes;",
        "to = from + segment;",
        "the end of a long row not folded",
    ),
    (
        "rows.cpp",
        "factor / (1.0 + s.rest) + s.undefined();",
        "factor / (1.0 + s.rest);",
        "a softmax where there is no distribution",
    ),
    (
        "rows.cpp",
        "if (off && j + w - off < out.to) some(w - off);",
        "if (off && j + w - off < out.to) j += w - off;",
        "around the caches: the head of a row not written",
    ),
    (
        "rows.cpp",
        "if (off && j + w - off < out.to) some(w - off);",
        "",
        "around the caches: stores that are not aligned",
    ),
    (
        "rows.cpp",
        "          return e * unit + e * unit_low;",
        "          return e * unit + unit_low;",
        "softmax plus its own correction",
    ),
    (
        "rows.cpp",
        "if (alpha == 0 && beta == 0 && gamma == 0 && delta == 0) return",
        "if (false) return",
        "ignored rows poison",
    ),
    (
        "rows.cpp",
        "const double dz = x == 0 && rest < 1 ? (top_slope + base) - q * top_slope : p * slope + base;",
        "const double dz = p * slope + base;",
        "cancellation at the maximum",
    ),
    (
        "rows.cpp",
        "dz = top ? to_narrow<F>((top_slope + base) - q * top_slope) : dz;",
        "",
        "cancellation at a weighted maximum",
    ),
    ("rows.cpp", "const double base = gamma + (u", "const double base = (u", "no gamma"),
    ("rows.cpp", "dz += d * weight;", "", "no delta"),
    (
        "rows.cpp",
        "call.rows.target[i] - call.first_class : -1",
        "call.rows.target[i] : -1",
        "the block's first class forgotten",
    ),
    ("rows.cpp", "const bool here = y >= call.out.from", "const bool here = y > call.out.from", "class 0 is no target"),
    ("rows.cpp", "x = x < floor ? floor : x;", "", "0 times infinity in the gradient"),
    (
        "rows.cpp",
        "return call.inverse_softcap != 0 ? dz * (one - t * t) : dz;",
        "return dz;",
        "no softcap factor",
    ),
    ("rows.cpp", "if (rows.target) live = live &", "if (false) live = live &", "ignored rows have a loss"),
    (
        "rows.cpp",
        "{call.scale * alpha, zero, -call.scale * nll, -call.scale * cross}",
        "{alpha, zero, zero - nll, zero - cross}",
        "the gradient of the loss not scaled",
    ),
    ("rows.cpp", "if (!call.cross.none()) alpha += cross * s.mass;", "", "no mass in the slope of the loss"),
    (
        "rows.cpp",
        "select(square != 0.0, square * lse * lse, zero)",
        "square * lse * lse",
        "0 times infinity in the loss",
    ),
    (
        "rows.cpp",
        "call.subtotals[(next - 1) / call.batch] =",
        "call.subtotals[0] =",
        "subtotals written over each other",
    ),
    ("narrow.h", "vec<F>)) - 1.0;", "vec<F>));", "few classes: the maximum counted with the rest"),
    (
        "narrow.h",
        "const vec<F> other = tie ? zero : e[k],",
        "const vec<F> other = e[k],",
        "few classes: ties counted twice",
    ),
    (
        "narrow.h",
        "moment_sum += smaller(x, large) * other;",
        "moment_sum += x * other;",
        "few classes: 0 times infinity in the moment",
    ),
    (
        "narrow.h",
        "(u[k] != zero) & ~tie ? x * u[k] : zero;",
        "x * u[k];",
        "few classes: 0 times infinity in the spread",
    ),
    (
        "narrow.h",
        "finite | (z[k] != z[k]) ? e[k] : zero;",
        "finite ? e[k] : zero;",
        "few classes: NaN beside an infinite maximum forgotten",
    ),
    (
        "narrow.h",
        "return to_narrow<F>((top_slope + base) - q * top_slope);",
        "return to_narrow<F>((1.0 - q) * top_slope + base);",
        "few classes: cancellation at the maximum",
    ),
    (
        "narrow.h",
        "at_target = y == static_cast<Index>(j), top",
        "at_target = y == static_cast<Index>(j + 1), top",
        "few classes: the wrong target",
    ),
    (
        "narrow.h",
        "group.z[j] = loud ? dz + nothing : zero;",
        "group.z[j] = dz + nothing;",
        "few classes: ignored rows poison",
    ),
    ("narrow.h", "if (capped) dz *= one - t * t;", "", "few classes: no softcap factor"),
    ("rows.cpp", "call.inverse_softcap == 0 && !tiny)", "call.inverse_softcap == 0)", "a tiny factor lost"),
    ("narrow.h", "if (any(tiny & (a != zero))) {", "if (false) {", "few classes: a tiny factor lost"),
    (
        "narrow.h",
        "targets_of<F>(rows, first, count) - first_class;",
        "targets_of<F>(rows, first, count);",
        "few classes: the first class forgotten",
    ),
    ("narrow.h", "(y >= int64_t{0})", "(y >= int64_t{1})", "few classes: class 0 is no target"),
    (
        "narrow.h",
        "even[i] = every_other(x[2 * i], x[2 * i + 1], lanes, false);",
        "even[i] = every_other(x[2 * i], x[2 * i + 1], lanes, true);",
        "few classes: rows split wrongly",
    ),
    (
        "narrow.h",
        "x[2 * i] = zipped(even[i], odd[i], lanes, false);",
        "x[2 * i] = zipped(odd[i], even[i], lanes, false);",
        "few classes: rows joined wrongly",
    ),
    (
        "narrow.h",
        "columns[j] = load(data + j * tile.class_stride);",
        "columns[j] = load(data + j * w);",
        "few classes: a transposed tile read at another stride",
    ),
    ("exp.h", "- r[i] * T::ln2_low) + low[i];", "- r[i] * T::ln2_low);", "the rounding of z - m not put back"),
    ("exp.h", "ln2_high = 0x1.63p-1f", "ln2_high = 0x1.62p-1f", "a wrong ln 2"),
    ("exp.h", "z[i] = x[i] < S::lowest ? vec<F>{} : q[i];", "z[i] = q[i];", "no underflow to 0"),
    ("exp.h", "0.1666666668f, 0.5000000013f", "0.1666666668f, 0.500013f", "a coefficient off in the fifth digit"),
    ("exp.h", "0.16666666666666671, 0.5}", "0.16666666667, 0.5}", "a coefficient of doubles off in the eleventh digit"),
    ("exp.h", "(lost - s * (g - t * q))", "(0.0 - s * (g - t * q))", "log1p of a small number is 0"),
    ("exp.h", "0.666666666666666969}", "0.66666666666}", "a coefficient of log1p off in the eleventh digit"),
    ("vec.h", "rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16,", "rounded = bits >> 16,", "bfloat16 truncated"),
    (
        "vec.h",
        "static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)",
        "static_cast<uint16_t>(bits >> 16)",
        "bfloat16 truncated one by one",
    ),
    (
        "module.cpp",
        "part + 1 < parts ? (part + 1) * segment : classes",
        "(part + 1) * segment",
        "the end of a long row that is shared out not visited",
    ),
    (
        "module.cpp",
        "(row * rows.weight.row_stride + from) * weight_size",
        "(row * rows.weight.row_stride) * weight_size",
        "a segment takes the weights of the first",
    ),
    ("module.cpp", "if (split.split) call.out.tile.data = nullptr;", "", "a long row's gradient written twice"),
    ("module.cpp", "/ given.z.classes / 64 * 64", "/ given.z.classes", "subtotals of batches that end within a group"),
    (
        "module.cpp",
        "bad += !skip & (static_cast<uint64_t>(y[i]) >=",
        "bad += !skip & (static_cast<uint64_t>(y[i]) >",
        "a target one past the last class",
    ),
    ("module.cpp", "skipped += skip;", "", "ignored targets not counted"),
    (
        "blocks.h",
        "LASTLAYER_EACH x[i] = larger(splat(T::lowest), x[i]);",
        "",
        "draws: the exponent of a small mass wraps",
    ),
    (
        "blocks.h",
        "0.1666657699f, 0.5f};",
        "0.1666657699f, 0.5001f};",
        "draws: a coefficient of masses off in the fourth digit",
    ),
    (
        "blocks.h",
        "m[0] = larger(some ? load_some(z + i, 1, n - i, static_cast<F>(-infinity))",
        "m[0] = larger(some ? load_some(z + i, 1, n - i, F(0))",
        "draws: a block's maximum over a tail of zeros",
    ),
    ("blocks.h", "low[k % 2] = smaller(each, low[k % 2]);", "", "draws: classes of -inf not noticed"),
    ("blocks.h", "y[i] = x[i] * scale;", "y[i] = x[i];", "draws: block masses without temperature"),
    (
        "blocks.h",
        "if (scaled) tempered += std::exp(x * scale);",
        "if (scaled) tempered += std::exp(x);",
        "draws: the tail of a block without temperature",
    ),
    (
        "blocks.h",
        "*middle < j ? low = middle + 1",
        "*middle <= j ? low = middle + 1",
        "draws: the edit of a block's first class ignored",
    ),
    (
        "blocks.h",
        "buffer[*at - b * block] = static_cast<F>(value[at - edit]);",
        "buffer[*at - b * block] = static_cast<F>(value[at - edit_from(b * block)]);",
        "draws: the values of edits counted from the block's first",
    ),
    (
        "blocks.h",
        "edited_lanes = lane_maxima(y, n, lowest);",
        "",
        "draws: the maximum of an edited block as it was passed",
    ),
    (
        "blocks.h",
        "two && top > static_cast<F>(-infinity) ? scaled : plain;",
        "plain;",
        "draws: edited blocks without temperature",
    ),
    (
        "blocks.h",
        "terms(z, m, two && !changed, out.raw_mass[b], out.mass[b]);",
        "terms(z, m, two && !changed, out.mass[b], out.raw_mass[b]);",
        "draws: the model's mass at the temperature",
    ),
    ("blocks.h", "out.holes[b] += y[j] ==", "out.holes[b] += z[j] ==", "draws: bans are counted among the kept"),
    ("blocks.h", "plain += at[j] == at[j] ? 0 : nan;", "", "draws: NaN in a block of -inf not noticed"),
    (
        "blocks.h",
        "buffer[j] = widen(from[j * stride]);",
        "buffer[j] = widen(from[j]);",
        "draws: the stride of the classes ignored",
    ),
    (
        "blocks.h",
        "const F s = static_cast<F>(std::max<double>(Limits::min(), std::min<double>(scale, Limits::max())));",
        "const F s = static_cast<F>(scale);",
        "draws: an infinite 1 / T times a difference of 0",
    ),
    (
        "blocks.h",
        "return static_cast<double>(widen(z[j * stride]));",
        "return static_cast<double>(widen(z[j]));",
        "draws: the logit drawn read at another stride",
    ),
    (
        "shortlist.h",
        "keys[at] == key && at <= position",
        "keys[at] == key && at < position",
        "draws: the last class that is kept is cut",
    ),
    (
        "shortlist.h",
        "return keys[at] < key || (keys[at] == key && at <= position);",
        "return keys[at] <= key;",
        "draws: all classes that tie with the last are kept",
    ),
    (
        "shortlist.h",
        "(keys[a] == keys[b] && a < b)",
        "(keys[a] == keys[b] && a > b)",
        "draws: of equal logits the last class is kept first",
    ),
    (
        "shortlist.h",
        "if (reached >= target) return;",
        "if (reached > target) return;",
        "draws: one class more than the target needs",
    ),
    (
        "shortlist.h",
        "sum + weights[found] >= target",
        "sum + weights[found] > target",
        "draws: the histogram passes the bin that reaches the target",
    ),
    ("shortlist.h", "before = sum;", "before = 0;", "draws: the histogram forgets what lies ahead"),
    ("shortlist.h", "(at - m) * scale;  //", "at - m;  //", "draws: the list's masses without temperature"),
    (
        "shortlist.h",
        "selection.keys[i] = -z[i];",
        "selection.keys[i] = z[i];",
        "draws: the smallest logits are kept first",
    ),
    (
        "shortlist.h",
        "select(value * whole, mass.data(), selection);",
        "select(value, mass.data(), selection);",
        "draws: top_p of a later place without the total",
    ),
    (
        "shortlist.h",
        "return mass[i] >= value; });",
        "return mass[i] > value; });",
        "draws: min_p cuts what is just as likely",
    ),
    (
        "shortlist.h",
        "std::sqrt(square / size())",
        "std::sqrt(square / (size() - 1.0))",
        "draws: the deviation of a sample",
    ),
    (
        "shortlist.h",
        "return z[i] - top >= least; });",
        "return z[i] >= least; });",
        "draws: deviations counted from zero",
    ),
    (
        "shortlist.h",
        "selection.find(value * whole, mass.data());",
        "selection.find(value, mass.data());",
        "draws: typical_p without the total",
    ),
    (
        "shortlist.h",
        "std::fabs((log_whole - (z[i] - top) * scale) - entropy);",
        "(log_whole - (z[i] - top) * scale) - entropy;",
        "draws: the least surprising are typical",
    ),
    (
        "shortlist.h",
        "std::min(value, std::sqrt(value) * std::exp(-entropy))",
        "std::sqrt(value) * std::exp(-entropy)",
        "draws: eta without the smaller of the two",
    ),
    ("shortlist.h", "std::min(least * whole, 1.0);", "least * whole;", "draws: a cutoff that keeps none"),
    (
        "shortlist.h",
        "return mass[i] >= threshold; });",
        "return mass[i] > threshold; });",
        "draws: a cutoff cuts what is just as likely",
    ),
    ("shortlist.h", "levels[level][i] = sum(levels[level - 1], i);", "", "draws: the tree not updated"),
    (
        "shortlist.h",
        "if (left < of[i]) break;",
        "if (left <= of[i]) break;",
        "draws: the tree gives a class of mass 0 to the uniform 0",
    ),
    ("shortlist.h", "left -= of[i];", "", "draws: the tree does not count what it passes"),
    ("row_draw.h", "if (!cut) first_scale = scale;", "", "draws: the first filter without the temperature before it"),
    (
        "inverse.h",
        "ascending[middle] <= value ? low",
        "ascending[middle] < value ? low",
        "draws: a class of mass 0 at the uniform 0",
    ),
    ("inverse.h", "left -= sums[k];", "", "draws: the parts of a block passed are not counted"),
    (
        "inverse.h",
        "if (left < mass[j]) return j;",
        "if (left <= mass[j]) return j;",
        "draws: a block gives a class of mass 0 to the uniform 0",
    ),
    (
        "inverse.h",
        "      if (mass[j] > 0) return j;\n  }",
        "      return j;\n  }",
        "draws: rounding draws a class of mass 0",
    ),
    (
        "row_draw.h",
        "if (static_cast<int64_t>(b) != where) rest += scaled[b];",
        "rest += scaled[b];",
        "draws: the block of the maximum counted twice",
    ),
    ("row_draw.h", "odd = odd || !(sums.raw_mass[b] < infinity) ||", "odd = odd ||", "draws: NaN that a ban hides"),
    (
        "row_draw.h",
        "if (sums.top[b] > top) top",
        "if (sums.top[b] >= top) top",
        "draws: greedy takes the last block of those that tie",
    ),
    (
        "row_draw.h",
        "log1p_rest(total, true, raw_highest, raw_top, 1)",
        "std::log1p(total - 1)",
        "draws: the log-probability of a sure class without digits",
    ),
    (
        "row_draw.h",
        "log1p_rest(total, false, highest, top, asked.scale)",
        "std::log1p(total - 1)",
        "draws: the tempered log-probability of a sure class without digits",
    ),
    ("row_draw.h", "call.rank[at] = 1 + larger_than(z);", "call.rank[at] = larger_than(z);", "draws: ranks begin at 0"),
    ("row_draw.h", "load(at + j) > splat(value)", "load(at + j) >= splat(value)", "draws: ties raise the rank"),
    ("row_draw.h", "count += at[j] > value;", "count += at[j] >= value;", "draws: ties in a tail raise the rank"),
    (
        "row_draw.h",
        "std::sort(s.sorted.begin(), s.sorted.end());",
        "",
        "draws: ranks of many draws looked up in disorder",
    ),
    ("draws.cpp", "    s.sorted.clear();\n", "", "draws: ranks of many draws among another row's logits"),
    ("row_draw.h", "return highest * block + j;", "return j;", "draws: greedy within the block"),
    (
        "row_draw.h",
        "if (sample > 0 && !call.replacement) return refuse(too_few);",
        "",
        "draws: greedy without replacement twice",
    ),
    (
        "row_draw.h",
        "call.kept_mass[i] = std::exp(logprob(row.raw_at(j)));",
        "call.kept_mass[i] = 1;",
        "draws: greedy keeps all mass",
    ),
    (
        "row_draw.h",
        "const bool same = !row.edited() && asked.scale == 1;",
        "const bool same = asked.scale == 1;",
        "draws: edits ignored in what was drawn from",
    ),
    ("row_draw.h", "row.classes - static_cast<int64_t>(holes);", "row.classes;", "draws: classes of -inf are kept"),
    ("row_draw.h", "row.edited() ? share_left() : 1;", "1;", "draws: bans take no mass"),
    (
        "row_draw.h",
        "if (!(banned > 0.5)) return",
        "if (true) return",
        "draws: the mass that many bans leave by a difference",
    ),
    (
        "row_draw.h",
        "s.filled.assign(blocks, 0), ",
        "s.filled.resize(blocks), ",
        "draws: many draws from another row's masses",
    ),
    (
        "row_draw.h",
        "return std::min(sum / std::exp(log_rest), 1.0);",
        "return sum;",
        "draws: the kept mass not divided by the total",
    ),
    ("row_draw.h", "low = std::max(low, std::numeric_limits<F>::lowest());", "", "draws: classes of -inf on the list"),
    (
        "row_draw.h",
        "return ranked(s.some, static_cast<int64_t>(k));",
        "return ranked(s.some, 1);",
        "draws: a bound that fewer than k reach",
    ),
    ("row_draw.h", "if (!(x > -infinity)) continue;", "", "draws: a deviation with -inf"),
    (
        "row_draw.h",
        "(1 - value) * mass / row.classes :",
        "(1 - value) * mass :",
        "draws: top_p: a bound as if one class were cut",
    ),
    ("row_draw.h", "close = error > 0 && (", "close = false && (", "draws: sums of floats decide what top_p keeps"),
    (
        "row_draw.h",
        "list.mass) close = close || (",
        "list.mass) close = false && (",
        "draws: sums of floats decide what a cutoff keeps",
    ),
    (
        "row_draw.h",
        "        s.list.weigh(now);\n      } else",
        "      } else",
        "draws: a later temperature ignored by filters",
    ),
    ("row_draw.h", "if (each == typical_p) s.list.weigh(now);", "", "draws: masses relative to a largest that is gone"),
    (
        "row_draw.h",
        "      gather(-infinity);\n    s.list.weigh(asked.scale);",
        "      gather(-infinity);",
        "draws: draws at the temperature of the first filter",
    ),
    (
        "row_draw.h",
        "if (step == lastlayer::temperature) now = asked.scale;",
        "",
        "draws: the bound of min_p without the temperature before it",
    ),
    (
        "row_draw.h",
        "if (call.order[at] == lastlayer::temperature) {",
        "if (at == 0) {",
        "draws: the temperature always first",
    ),
    (
        "shortlist.h",
        "    tree.set(k, 0);\n    found(",
        "    found(",
        "draws: a class drawn twice without replacement",
    ),
    (
        "shortlist.h",
        "if (!(tree.total() > little)) {",
        "if (false) {",
        "draws: draws from masses that have all become 0",
    ),
    (
        "row_draw.h",
        "list.mass[k] > others ? likely : unlikely",
        "likely",
        "draws: the log-probability of what is next to impossible",
    ),
    (
        "row_draw.h",
        "if (!seen && s.list.z[k] == s.list.top)",
        "if (s.list.z[k] == s.list.top)",
        "draws: all ties on the list kept out of the sum",
    ),
    (
        "weights.h",
        "!call.replacement && count < call.samples ? too_few : fine;",
        "fine;",
        "draws: more weights drawn than there are",
    ),
    (
        "weights.h",
        "const double unit = std::ldexp(1.0, std::min(-exponent, 1000));",
        "const double unit = 1;",
        "draws: weights whose sum overflows",
    ),
    (
        "shortlist.h",
        "return list.index[k] >= 0;",
        "return true;",
        "draws: what was taken out is weighed again",
    ),
    (
        "draws.cpp",
        "fraction[at] = (threshold - (b ? s.cumulative[b - 1] : 0)) / s.scaled[b];",
        "fraction[at] = threshold / s.scaled[b];",
        "draws: the share within a chosen block from the row's beginning",
    ),
    (
        "draws.cpp",
        "if (at[j] >= bound) list.index",
        "if (at[j] > bound) list.index",
        "draws: topk without what ties with the last",
    ),
    (
        "draws.cpp",
        "(list.z[a] == list.z[b] && a < b)",
        "(list.z[a] == list.z[b] && a > b)",
        "draws: topk: of equal logits the last class first",
    ),
    ("module.cpp", "uint64_t{0xD2511F53}", "uint64_t{0xD2511F57}", "draws: another multiplier of Philox"),
    ("module.cpp", "k += 0x9E3779B9", "k += 0x9E3779BB", "draws: another Weyl constant of Philox"),
    ("module.cpp", "round < 10; ++round", "round < 9; ++round", "draws: nine rounds of Philox"),
    (
        "module.cpp",
        "uint64_t{b} << 32 | a;",
        "uint64_t{a} << 32 | b;",
        "draws: the words of a uniform in another order",
    ),
    (
        "module.cpp",
        "uint64_t{d} << 32 | c",
        "uint64_t{b} << 32 | a",
        "draws: the acceptance test with the words of the draw",
    ),
    (
        "module.cpp",
        "b = high(at)",
        "b = 0",
        "draws: offsets of 32 bits",
    ),
    (
        "module.cpp",
        "m = high(seeds[row])",
        "m = 0",
        "draws: seeds of 32 bits",
    ),
    (
        "module.cpp",
        "drawing->sum(call, row, from, to, sums.data() + row * each);",
        "drawing->sum(call, row, from, to, sums.data());",
        "draws: rows that are shared out write over each other's sums",
    ),
]
UNITS = {
    "blocks.h": "draws.cpp",
    "shortlist.h": "draws.cpp",
    "inverse.h": "draws.cpp",
    "row_draw.h": "draws.cpp",
    "weights.h": "draws.cpp",
    "draws.cpp": "draws.cpp",
    "module.cpp": "module.cpp",
}  # else rows.cpp
OF_ROWS = ("test_backends.py", "test_loss.py", "test_accuracy.py", "test_threads.py")
OF_DRAWS = ("test_draws.py", "test_truncation.py", "test_draw_edits.py", "test_sampling.py", "test_philox.py")
TESTS = {"rows.cpp": OF_ROWS, "draws.cpp": OF_DRAWS, "module.cpp": (*OF_DRAWS, *OF_ROWS)}
RUN = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
sys.path.insert(0, {site!r})
import lastlayer._native
assert lastlayer._native.__file__.startswith({site!r}), lastlayer._native.__file__
import pytest
class Others:
    def pytest_collection_modifyitems(self, items):
        def named(item):
            params = item.callspec.params if hasattr(item, "callspec") else {{}}
            return {{each for each in params.values() if type(each) is str}}
        items[:] = [item for item in items if not named(item) & set({others!r})]
options = ["-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error"]
sys.exit(pytest.main([*options, *{files!r}], plugins=[Others()]))
"""


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def expect(*command: str, cwd: Path = ROOT) -> str:
    done = run(*command, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


class Build:
    """One copy of the sources, its objects, and a copy of the package with the module that they are linked to."""

    def __init__(self, place: Path) -> None:
        self.native, self.site, self.objects = place / "native", place / "site", place / "build"
        self.native.parent.mkdir(parents=True)
        shutil.copytree(
            ROOT / "src" / "lastlayer", self.site / "lastlayer", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / "native", self.native)
        shutil.copy(ROOT / "CMakeLists.txt", place)
        options = (f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-Wno-dev")
        expect("cmake", "-S", str(place), "-B", str(self.objects), *options)
        self.commands = [
            [*shlex.split(entry["command"].replace("-O3", "-O1")), "-w"]
            for entry in json.loads((self.objects / "compile_commands.json").read_text())
        ]
        self.stale = ""  # the source that the objects were last compiled from in a broken state
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.compile, self.commands))
        self.link()

    def compile(self, command: list[str]) -> None:
        expect(*command, cwd=self.objects)

    def link(self) -> None:
        objects = [str(self.objects / command[command.index("-o") + 1]) for command in self.commands]
        module = self.site / "lastlayer" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        expect(self.commands[0][0], "-shared", "-o", str(module), *objects, "-pthread", "-ldl")

    def make(self, source: str, isa: str) -> None:
        """Compile what a source is part of, for one instruction set, and what was broken before; link."""
        for changed in {source, self.stale} - {""}:
            unit = (f"-DLASTLAYER_ISA={isa}",) if changed != "module.cpp" else ()
            for command in self.commands:
                if any(word.endswith(f"native/{changed}") for word in command) and all(u in command for u in unit):
                    self.compile(command)
        self.stale = source
        self.link()

    def instruction_sets(self) -> list[str]:
        """Return those of this machine, best first."""
        code = "import _native; print(*_native.instruction_sets())"
        return expect(sys.executable, "-c", code, cwd=self.site / "lastlayer").split()

    def passes(self, others: list[str], unit: str) -> bool:
        """Run the tests of a source's kernels against this package, without those of other backends."""
        skipped, files = (
            ["reference", *(f"cpu-{name}" for name in others)],
            [str(ROOT / "tests" / n) for n in TESTS[unit]],
        )
        done = run(sys.executable, "-c", RUN.format(site=str(self.site), others=skipped, files=files))
        (self.site / "log").write_text(done.stdout + done.stderr)
        return done.returncode == 0

    def survives(self, mutant: tuple[str, str, str, str], isas: list[str]) -> bool:
        """Tell whether no test notices an edit."""
        name, old, new, what = mutant
        file, text = self.native / name, (ROOT / "native" / name).read_text()
        file.write_text(text.replace(old, new))
        unit = UNITS.get(name, "rows.cpp")
        self.make(unit, isas[0])
        survived = self.passes(isas[1:], unit)
        print(f"{'SURVIVED' if survived else 'caught  '} {what}", flush=True)
        file.write_text(text)
        return survived


def main() -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant[3] for word in sys.argv[1:])]
    for name, old, _, _ in chosen:
        assert (ROOT / "native" / name).read_text().count(old) == 1, f"{name}: not one {old!r}: update tests/mutants.py"
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(workers) as pool:
        builds = list(pool.map(Build, (Path(place) / str(worker) for worker in range(workers))))
        isas = builds[0].instruction_sets()
        if not builds[0].passes(isas[1:], "module.cpp"):
            print(
                (builds[0].site / "log").read_text()[-3000:], "the unbroken kernels fail: nothing to learn from mutants"
            )
            return 1
        free: queue.Queue[Build] = queue.Queue()
        for build in builds:
            free.put(build)

        def attempt(mutant: tuple[str, str, str, str]) -> bool:
            build = free.get()
            try:
                return build.survives(mutant, isas)
            finally:
                free.put(build)

        survivors = sum(pool.map(attempt, chosen))
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
