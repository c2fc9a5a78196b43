"""The complementary error function, which NumPy has not and the exact GELU needs."""

from functools import cache

import numpy as np

# Of (1 + 2z) exp(z²) erfc(z) in Chebyshev polynomials of t = (z - 4) / (z + 4): a function that is
# smooth to infinity, where it is 2/√π. (The form is that of Shepherd and Laframboise, Math. Comp.
# 36, 1981; the numbers were computed with 50 digits, by its values at the roots of T₄₀.)
ERFC_SERIES = (
    1.1774832005374487, -0.007260796620301901, -0.081265123236185, 0.06009212804122225,
    -0.02875393558027666, 0.01059566336347286, -0.003136927294554264, 0.0007456494372536184,
    -0.00013696965030100534, 1.7183861600301018e-05, -7.158364623449406e-07,
    -2.4261399442439417e-07, 5.576570939580425e-08, -2.10578695128829e-09, -1.171788935110809e-09,
    1.9098355178146217e-10, 1.4088717673935778e-11, -6.901108316055967e-12, 9.167956032685145e-14,
    2.1454503357785648e-13, -1.471664657361445e-14, -6.6687635403862224e-15,
    7.503612029363965e-16,
)  # fmt: skip


@cache
def erfc_polynomial(terms: int) -> list[float]:
    """Coefficients of 1, t, t² … of the first `terms` of the series; Python numbers.

    >>> len(erfc_polynomial(13)), round(sum(erfc_polynomial(13)), 4)  # at t = 1 it is 2/√π
    (13, 1.1284)
    """
    return [float(c) for c in np.polynomial.chebyshev.cheb2poly(ERFC_SERIES[:terms])]


def erfc(z: np.ndarray) -> np.ndarray:
    """Complementary error function of z ≥ 0: 2/√π ∫ exp(-u²) du from z to infinity.

    NumPy has none. A series of 23 terms gives it to 10⁻¹⁵, one of 13 to all digits of a float32.

    z : float array, nowhere below 0

    >>> erfc(np.array([0, 1, np.inf], dtype=np.float64)).round(6).tolist()
    [1.0, 0.157299, 0.0]
    """
    z = np.minimum(z, 30)  # where it is 0 to every digit; from infinity t would be no number
    t = (z - 4) / (z + 4)
    *lower, sum_ = erfc_polynomial(23 if z.dtype == np.float64 else 13)
    for coefficient in reversed(lower):
        sum_ = sum_ * t + coefficient
    return sum_ * np.exp(-z * z) / (1 + 2 * z)
