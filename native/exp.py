"""Derive the polynomials of native/exp.h: ``python native/exp.py`` prints the header's coefficients and their error.

exp(r) = 1 + r + r^2 Q(r) on |r| <= ln(2)/2, Q the Chebyshev interpolation of (exp(r) - 1 - r)/r^2: the first two
terms stay exact, so exp(0) = 1 and small arguments lose nothing. The degree is the least whose truncation error is
below a tenth of a unit in the last place.
"""

from mpmath import chebyfit, exp, ln, mp, mpf, polyval

mp.prec = 200
half_ln2 = ln(2) / 2 * mpf("1.0001")


def q(r: mpf) -> mpf:
    """Return (exp(r) - 1 - r) / r^2, by its series near 0."""
    return mp.nsum(lambda k: r**k / mp.factorial(k + 2), [0, 40]) if abs(r) < mpf("0.5") else (exp(r) - 1 - r) / r**2


def derive(bits: int) -> tuple[list[mpf], mpf]:
    """Return the coefficients, highest first, and the worst relative error in units of the last place."""
    for terms in range(2, 20):
        coefficients = chebyfit(q, [-half_ln2, half_ln2], terms)
        points = [half_ln2 * (mpf(i) / 500 - 1) for i in range(1001)]
        error = max(abs(1 + r + r * r * polyval(coefficients, r) - exp(r)) / exp(r) for r in points) * mpf(2) ** bits
        if error < mpf("0.1"):
            return coefficients, error
    raise AssertionError("no degree up to 20 suffices")


if __name__ == "__main__":
    for name, bits, digits in (("float", 24, 10), ("double", 53, 18)):
        coefficients, error = derive(bits)
        print(f"// {name}: truncation error {mp.nstr(error, 2)} ulp")
        print(", ".join(mp.nstr(c, digits) for c in coefficients))
