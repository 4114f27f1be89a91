"""Derive the polynomials of exp.h: ``python native/polynomials.py`` prints their coefficients and errors.

    exp(r) = 1 + r + r^2 Q(r)       |r| <= ln(2)/2                 Q(r) interpolates (exp(r) - 1 - r)/r^2
    log(f) = 2 s + s^3 P(s^2)       sqrt(1/2) <= f <= sqrt(2)      P(t) interpolates (2 atanh(s) - 2 s)/s^3, t = s^2

with s = (f - 1)/(f + 1), so that log(f) = 2 atanh(s). The interpolation is Chebyshev's; the leading terms stay exact,
so small arguments lose nothing. The number of terms is the least whose truncation error is below a tenth of a unit.
Errors are relative, in units of 2^-24 or 2^-53, which an ulp is never below; docs/mathematics.md derives the bounds.
"""

from typing import NamedTuple

from mpmath import atanh, chebyfit, exp, factorial, fsum, ldexp, ln, mp, mpf, nstr, polyval, sqrt

mp.prec = 200
BITS = {"float": 24, "double": 53}
DIGITS = {"float": 10, "double": 18}
half_ln2 = ln(2) / 2 * mpf("1.0001")  # k is the nearest integer up to the rounding of x / ln 2
largest_t = (3 - 2 * sqrt(2)) ** 2 * mpf("1.0001")


class Exp:
    """exp(r) - 1 - r = r^2 Q(r)."""

    low, high = -half_ln2, half_ln2

    @staticmethod
    def series(r: mpf) -> mpf:
        """Return Q's function: sum r^k / (k + 2)!."""
        return fsum(r**k / factorial(k + 2) for k in range(40))

    @staticmethod
    def error(coefficients: list[mpf], r: mpf) -> mpf:
        """Return the relative error of the approximation."""
        return (1 + r + r * r * polyval(coefficients, r)) / exp(r) - 1

    @staticmethod
    def bound(n: int) -> mpf:
        """Bound the truncation error of n terms: r^2 2 (a/2)^n max|Q^(n)|/n! / exp(r), Q^(n)/n! <= e^a/(n + 2)!."""
        a = half_ln2
        return a**2 * 2 * (a / 2) ** n * exp(a) / factorial(n + 2) * exp(a)


class Log:
    """log(f) - 2 s = s^3 P(t)."""

    low, high = mpf(0), largest_t

    @staticmethod
    def series(t: mpf) -> mpf:
        """Return P's function: sum 2 t^k / (2 k + 3)."""
        return fsum(2 * t**k / (2 * k + 3) for k in range(50))

    @staticmethod
    def error(coefficients: list[mpf], t: mpf) -> mpf:
        """Return the relative error of the approximation."""
        s = sqrt(t)
        return (2 * s + s * t * polyval(coefficients, t)) / (2 * atanh(s)) - 1 if s else mpf(0)

    @staticmethod
    def bound(n: int) -> mpf:
        """Bound the truncation error of n terms: T/2 2 (T/4)^n max|P^(n)|/n!, that <= 2/(2 n + 3) (1 - T)^-(n + 1)."""
        t = largest_t
        return t / 2 * 2 * (t / 4) ** n * 2 / (2 * n + 3) / (1 - t) ** (n + 1)


class Derived(NamedTuple):
    """A polynomial, highest coefficient first, and its worst relative errors in units of 2^-bits."""

    coefficients: list[mpf]
    truncation: mpf
    bound: mpf
    rounded: mpf  # with the coefficients rounded to the type


def derive(function: type[Exp | Log], bits: int) -> Derived:
    """Return the least polynomial whose truncation error is below a tenth of a unit."""
    low, high = function.low, function.high
    points = [low + (high - low) * mpf(i) / 1000 for i in range(1001)]

    def worst(coefficients: list[mpf]) -> mpf:
        return ldexp(max(abs(function.error(coefficients, x)) for x in points), bits)

    for terms in range(2, 20):
        coefficients = chebyfit(function.series, [low, high], terms)
        truncation = worst(coefficients)
        if truncation < mpf("0.1"):
            with mp.workprec(bits):
                rounded = [+c for c in coefficients]
            return Derived(coefficients, truncation, ldexp(function.bound(terms), bits), worst(rounded))
    raise AssertionError("no degree up to 20 suffices")


if __name__ == "__main__":
    for function, name in ((Exp, "float"), (Exp, "double"), (Log, "double")):
        found = derive(function, BITS[name])
        figures = ", ".join(f"{field} {nstr(getattr(found, field), 2)}" for field in ("truncation", "bound", "rounded"))
        print(f"// {function.__name__.lower()}, {name}: {figures}")
        print(", ".join(nstr(c, DIGITS[name]) for c in found.coefficients))
    short = chebyfit(Exp.series, [Exp.low, Exp.high], 5)
    print("// blocks.h:", ", ".join(nstr(c, DIGITS["float"]) for c in short))
