"""Discrete Fourier transforms as straight-line arithmetic on any type that adds and multiplies, TIR or numbers.

Split radix (Duhamel and Hollmann, "Split radix FFT algorithm", Electronics Letters 20(1), 1984) in decimation by
frequency for complex sequences; for real ones two transforms of half the length, of which only half the frequencies are
computed. Inverses compute only the requested first values, and nothing is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Real = Any
Complex = tuple[Real, Real]

_EXACT = 1e-12


@dataclass(frozen=True, slots=True)
class Dft:
    """Emits transforms; `bind` names each result, so that it is computed once."""

    bind: Callable[[Real], Real]

    def add(self, a: Complex, b: Complex) -> Complex:
        """a + b."""
        return self.bind(a[0] + b[0]), self.bind(a[1] + b[1])

    def subtract(self, a: Complex, b: Complex) -> Complex:
        """a - b."""
        return self.bind(a[0] - b[0]), self.bind(a[1] - b[1])

    def turn(self, a: Complex, numerator: int, n: int) -> Complex:
        """a exp(2 pi i numerator / n)."""
        angle = 2 * math.pi * (numerator % n) / n
        c, s = math.cos(angle), math.sin(angle)
        if abs(s) < _EXACT:
            return a if c > 0 else (self.bind(0 - a[0]), self.bind(0 - a[1]))
        if abs(c) < _EXACT:
            return (self.bind(0 - a[1]), a[0]) if s > 0 else (a[1], self.bind(0 - a[0]))
        return self.bind(a[0] * c - a[1] * s), self.bind(a[0] * s + a[1] * c)

    def complex(self, x: Sequence[Complex], sign: int, count: int) -> list[Complex]:
        """The first `count` of y[k] = sum_j x[j] exp(sign 2 pi i j k / n)."""
        n = len(x)
        if n == 1 or count == 0:
            return list(x[:count])
        if n % 2:
            return self._odd_complex(x, sign, count)
        half, quarter = n // 2, n // 4
        even = self.complex([self.add(x[j], x[j + half]) for j in range(half)], sign, (count + 1) // 2)
        odd_count = count // 2
        if n % 4 or n == 2:
            turned = [self.turn(self.subtract(x[j], x[j + half]), sign * j, n) for j in range(half if odd_count else 0)]
            odd = self.complex(turned, sign, odd_count) if odd_count else []
        else:
            first, third = [], []
            for j in range(quarter if odd_count else 0):
                a = self.subtract(x[j], x[j + half])
                b = self.turn(self.subtract(x[j + quarter], x[j + quarter + half]), 1, 4)
                plus, minus = self.add(a, b), self.subtract(a, b)
                one, three = (plus, minus) if sign > 0 else (minus, plus)
                first.append(self.turn(one, sign * j, n))
                third.append(self.turn(three, sign * 3 * j, n))
            ones = self.complex(first, sign, (odd_count + 1) // 2) if first else []
            threes = self.complex(third, sign, odd_count // 2) if third else []
            odd = [(ones if k % 2 == 0 else threes)[k // 2] for k in range(odd_count)]
        return [(even if k % 2 == 0 else odd)[k // 2] for k in range(count)]

    def real(self, x: Sequence[Real]) -> list[Complex]:
        """y[k] = sum_j x[j] exp(-2 pi i j k / n) for k <= n / 2; y[0] and, for an even n, y[n / 2] have None as i."""
        n = len(x)
        if n == 1:
            return [(x[0], None)]
        if n % 2:
            return self._odd_real(x)
        half = n // 2
        even, odd = self.real(x[::2]), self.real(x[1::2])
        y: list[Any] = [None] * (half + 1)
        y[0], y[half] = (self.bind(even[0][0] + odd[0][0]), None), (self.bind(even[0][0] - odd[0][0]), None)
        for k in range(1, len(even)):
            if 2 * k == half:  # both are real there, and the turn is by -i
                y[k] = even[k][0], self.bind(0 - odd[k][0])
                continue
            a, b = even[k], self.turn(odd[k], -k, n)
            y[k] = self.add(a, b)
            y[half - k] = self.bind(a[0] - b[0]), self.bind(b[1] - a[1])
        return y

    def real_inverse(self, y: Sequence[Complex], n: int, count: int) -> list[Real]:
        """The first `count` of x[j] = sum_k y[k] exp(2 pi i j k / n), where y[n - k] is the conjugate of y[k]."""
        if count == 0:
            return []
        if n == 1:
            return [y[0][0]]
        if n % 2:
            return self._odd_real_inverse(y, n, count)
        half = n // 2
        even: list[Complex] = [(self.bind(y[0][0] + y[half][0]), None)]
        odd: list[Complex] = [(self.bind(y[0][0] - y[half][0]), None)]
        for k in range(1, half // 2 + 1):
            a, b = y[k], y[half - k]
            if 2 * k == half:
                even.append((self.bind(a[0] * 2), None))
                odd.append((self.bind(a[1] * -2), None))
                continue
            even.append((self.bind(a[0] + b[0]), self.bind(a[1] - b[1])))
            odd.append(self.turn((self.bind(a[0] - b[0]), self.bind(a[1] + b[1])), k, n))
        evens = self.real_inverse(even, half, (count + 1) // 2)
        odds = self.real_inverse(odd, half, count // 2)
        return [(evens if j % 2 == 0 else odds)[j // 2] for j in range(count)]

    def _sum(self, terms: Sequence[tuple[Real, float]], start: Real = None) -> Real:
        """start + sum of value * factor."""
        total = start
        for value, factor in terms:
            total = self.bind(value * factor) if total is None else self.bind(total + value * factor)
        return total

    def _odd_real(self, x: Sequence[Real]) -> list[Complex]:
        n, pairs = len(x), range(1, len(x) // 2 + 1)
        sums = [self.bind(x[j] + x[n - j]) for j in pairs]
        differences = [self.bind(x[j] - x[n - j]) for j in pairs]
        y: list[Complex] = [(self._sum([(s, 1.0) for s in sums], x[0]), None)]
        for k in pairs:
            re = self._sum([(s, _cosine(j * k, n)) for j, s in zip(pairs, sums, strict=True)], x[0])
            im = self._sum([(d, -_sine(j * k, n)) for j, d in zip(pairs, differences, strict=True)])
            y.append((re, im))
        return y

    def _odd_real_inverse(self, y: Sequence[Complex], n: int, count: int) -> list[Real]:
        pairs = range(1, n // 2 + 1)
        x: list[Any] = [None] * n
        x[0] = self._sum([(y[k][0], 2.0) for k in pairs], y[0][0])
        for j in pairs:
            if j >= count:
                break
            c = self._sum([(y[k][0], 2 * _cosine(j * k, n)) for k in pairs], y[0][0])
            s = self._sum([(y[k][1], 2 * _sine(j * k, n)) for k in pairs])
            x[j], x[n - j] = self.bind(c - s), self.bind(c + s)
        return x[:count]

    def _odd_complex(self, x: Sequence[Complex], sign: int, count: int) -> list[Complex]:
        n, pairs = len(x), range(1, len(x) // 2 + 1)
        sums = [self.add(x[j], x[n - j]) for j in pairs]
        differences = [self.subtract(x[j], x[n - j]) for j in pairs]
        y: list[Any] = [None] * n
        y[0] = tuple(self._sum([(s[part], 1.0) for s in sums], x[0][part]) for part in range(2))
        for k in pairs:
            if k >= count:
                break
            cosines = [_cosine(j * k, n) for j in pairs]
            sines = [sign * _sine(j * k, n) for j in pairs]
            re, im = (
                self._sum([(s[part], c) for s, c in zip(sums, cosines, strict=True)], x[0][part]) for part in range(2)
            )
            turned_re, turned_im = (
                self._sum([(d[part], s) for d, s in zip(differences, sines, strict=True)]) for part in range(2)
            )
            y[k] = self.bind(re - turned_im), self.bind(im + turned_re)
            y[n - k] = self.bind(re + turned_im), self.bind(im - turned_re)
        return y[:count]


def _cosine(numerator: int, n: int) -> float:
    return math.cos(2 * math.pi * (numerator % n) / n)


def _sine(numerator: int, n: int) -> float:
    return math.sin(2 * math.pi * (numerator % n) / n)
